"""Tables of llama.cpp's types, of other peers, and of few bits in embedding and head."""

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


def peers(rows: list[Row]) -> list[list[str]]:
    """Return the lines of the table of benchmarks/front_peers.py, the first of them the head."""
    names = list(rows[0]["excess"])
    head = ["way", "ends, bits", "linear bytes", "file's bytes", *names, "mean"]
    lines = [[*head, "best of its size"]]
    for row in rows:
        excess = ["{:.3f} ± {:.3f}".format(*row["excess"][name]) for name in names]
        sizes = [f"{row[part]:.1%}" for part in ("linear", "file")]
        mean = f"{row['mean']:.3f}"
        best = "yes" if row["front"] else ""
        lines.append([row["label"], row["ends"], *sizes, *excess, mean, best])
    return lines


def _line(row: Row, names: list[str]) -> list[str]:
    kinds = ", ".join(f"{count} {name}" for name, count in row["kinds"].items())
    excess = ["{:.3f} ± {:.3f}".format(*row["excess"][name]) for name in names]
    measured = [*excess, f"{row['mean']:.3f}", f"{row['part']:.2f}"] if names else []
    about = [row["model"], row["mix"], row["way"], f"{row['bytes'] / 1e6:.1f}"]
    return [*about, *measured, f"{row['predicted']:.3f}", f"{row['predicted_part']:.2f}", kinds]


def end_prices(rows: list[Row]) -> list[list[str]]:
    """Return the lines of the table of what few bits in one table cost, the first of them the head.

    rows: with ``excess`` by text.
    """
    names = list(rows[0]["excess"])
    lines = [["model", "table", "bits", *names, "mean", "price", "mean / price"]]
    for row in rows:
        excess = ["{:.4f} ± {:.4f}".format(*row["excess"][name]) for name in names]
        about = [row["model"], row["role"], str(row["bits"])]
        ratio = f"{row['mean'] / row['predicted']:.2f}"
        lines.append([*about, *excess, f"{row['mean']:.4f}", f"{row['predicted']:.4f}", ratio])
    return lines


def whole_file(rows: list[Row]) -> list[list[str]]:
    """Return the lines of the table of models at a part of the file's bytes, the head first."""
    names = list(rows[0]["excess"])
    head = ["model", "of the file", "MB", "embedding and head", "bits of maps", *names, "mean"]
    lines = [[*head, "predicted"]]
    for row in rows:
        excess = ["{:.3f} ± {:.3f}".format(*row["excess"][name]) for name in names]
        ends = ", ".join(f"{role} {bits}" for role, bits in row["ends"].items())
        about = [row["model"], f"{row['keep']:.0%}", f"{row['bytes'] / 1e6:.1f}"]
        about += [f"{row['way']}: {ends}", f"{row['bits']:.2f}"]
        lines.append([*about, *excess, f"{row['mean']:.3f}", f"{row['predicted']:.3f}"])
    return lines
