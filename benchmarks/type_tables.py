"""The table of llama.cpp's types: what each way to choose and round loses at equal bytes."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def types(rows: list[Row]) -> list[list[str]]:
    """Return the lines of the table, the first of them the head; without texts, what is predicted.

    rows: with ``excess`` by text, empty where none was read.
    """
    names = list(rows[0]["excess"])
    measured = [*names, "mean", "of llama.cpp's"] if names else []
    head = ["model", "bytes of", "types and codes", "MB", *measured, "predicted", "of llama.cpp's"]
    return [[*head, "types"], *(_line(row, names) for row in rows)]


def _line(row: Row, names: list[str]) -> list[str]:
    kinds = ", ".join(f"{count} {name}" for name, count in row["kinds"].items())
    excess = ["{:.3f} ± {:.3f}".format(*row["excess"][name]) for name in names]
    measured = [*excess, f"{row['mean']:.3f}", f"{row['part']:.2f}"] if names else []
    about = [row["model"], row["mix"], row["way"], f"{row['bytes'] / 1e6:.1f}"]
    return [*about, *measured, f"{row['predicted']:.3f}", f"{row['predicted_part']:.2f}", kinds]
