"""The table of llama.cpp's types: what each way to choose and round loses at equal bytes."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def types(rows: list[Row]) -> list[list[str]]:
    """Return the lines of the table, the first of them the head."""
    names = list(rows[0]["excess"])
    head = ["model", "bytes of", "types and codes", "MB", *names, "mean", "of llama.cpp's",
            "predicted", "of llama.cpp's", "types"]  # fmt: skip
    return [head, *(_line(row, names) for row in rows)]


def _line(row: Row, names: list[str]) -> list[str]:
    kinds = ", ".join(f"{count} {name}" for name, count in row["kinds"].items())
    excess = ["{:.3f} ± {:.3f}".format(*row["excess"][name]) for name in names]
    about = [row["model"], row["mix"], row["way"], f"{row['bytes'] / 1e6:.1f}"]
    measured = [*excess, f"{row['mean']:.3f}", f"{row['part']:.2f}"]
    return [*about, *measured, f"{row['predicted']:.3f}", f"{row['predicted_part']:.2f}", kinds]
