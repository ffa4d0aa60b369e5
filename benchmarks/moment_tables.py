"""The tables of moments.py, binary_factors.py and budgets.py: losses, and what was predicted."""

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


def binary_factors(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table of factors of signs, the head first."""
    names = list(rows[0]["excess"])
    lines = [["block", "bits asked", "bits a weight", "stored as", *names, "mean", "predicted"]]
    for row in rows:
        cells = [around(row["excess"][name]) for name in names]
        about = [str(row["block"]), f"{row['asked']:g}", f"{row['bits']:.2f}", row["label"]]
        lines.append([*about, *cells, f"{row['mean']:.4f}", f"{row['predicted']:.4f}"])
    return lines


def budgets(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the lines of the table."""
    names = list(rows[0]["excess"])
    head = [
        "linear bytes",
        "numbers as",
        "learnt",
        "predicted",
        "measured on the search split",
        *names,
    ]
    lines = [[*head, "mean of the four", "seconds"]]
    for one in sorted(rows, key=lambda row: (-row["size"], row["way"], row["minutes"])):
        learnt = f"{one['minutes']:g} minutes, {' + '.join(map(str, one['steps']))} steps"
        mean = sum(one["excess"][name][0] for name in names) / len(names)
        lines.append(
            [f"{one['size']:g} %", one["way"], learnt,
             f"{one['predicted']:.3f}", f"{one['search']:.3f}",
             *(around(one["excess"][name]) for name in names), f"{mean:.3f}",
             f"{one['seconds']:.0f}"]
        )  # fmt: skip
    return lines
