"""Tables of healing: what it wins back, in how many minutes and how much memory."""

from __future__ import annotations

from typing import Any

from cells import around

Row = dict[str, Any]
Lines = list[list[str]]


def heal(rows: list[Row]) -> Lines:
    """Return the lines of the table of what healing wins back, the first of them the head."""
    names = list(rows[0]["excess"])
    by = ", " + " / ".join(names)
    lines = [["stages", "minutes", *names, f"closed{by}", f"closed of the SVD's{by}"]]
    for row in rows:
        minutes = f"{row['minutes']:.1f}" + (f" ({row['ran']})" if row.get("ran") else "")
        closed = [
            " / ".join(f"{100 * part:.0f} %" for part in row.get(key) or ())
            for key in ("closed", "closed_of_svd")
        ]
        cells = [around(row["excess"][one]) for one in names]
        lines.append([row["stages"], minutes, *cells, *closed])
    return lines


def memory(rows: list[Row]) -> Lines:
    """Return the lines of the table of the memory of healing, the first of them the head."""
    lines = [["stage", "peak, MB", "beside what was there, MB", "of distil's"]]
    for row in rows:
        numbers = [f"{row['peak_mb']:.0f}", f"{row['beside_mb']:.0f}", f"{row['of_distil']:.0%}"]
        lines.append([row["label"], *numbers])
    return lines
