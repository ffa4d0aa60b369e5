"""The tables of benchmarks/moments.py: losses by the moment that GPTQ rounds with, and prices."""

from __future__ import annotations

from typing import Any

from cells import around


def moments(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table, the head first."""
    names = list(rows[0]["excess"])
    lines = [["bits", "rounded with", *names, "mean", "predicted, as fitted", "held out"]]
    for row in rows:
        cells = [around(row["excess"][name]) for name in names]
        mean = sum(row["excess"][name][0] for name in names) / len(names)
        held_out = "" if row["held_out"] is None else f"{row['held_out']:.3f}"
        lines.append(
            [str(row["bits"]), row["kind"], *cells, f"{mean:.3f}", f"{row['fitted']:.3f}", held_out]
        )
    return lines
