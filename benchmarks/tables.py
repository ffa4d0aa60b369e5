"""Tables of docs/results.md and README.md, each made of the rows of one run.

A run is a file of benchmarks/runs (see run_files.py); its rows say in ``table`` which table they
belong to. A measured number with its uncertainty is a list: [value, half of the interval], or
[value, low end, high end]. Here stands how each of them is written, and nothing is computed but
the choice of README.md's three rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import run_files
from cells import around, between, together
from export_tables import (
    adapters,
    exports,
    exports_onnx,
    kernels,
    kernels_loss,
    rounded_activations,
    rounded_inputs,
    routes,
    serving,
)
from healing_tables import heal, memory
from moment_tables import binary_factors, budgets, moments
from suite_tables import measures, tasks, texts
from type_tables import types

Row = dict[str, Any]
Lines = list[list[str]]


class Table(NamedTuple):
    """The run that a table is made of, and what makes its lines, the first of them the head.

    rows: the table that its rows name, where that is another. told: how the run was measured
    follows the table.
    """

    run: str
    lines: Callable[[list[Row]], Lines]
    rows: str = ""
    told: bool = False


def _parts(rows: list[Row]) -> Lines:
    names = list(rows[0]["loss"])
    head = ["calibration", "keep", "row", "stored", *names, "perplexity, WikiText-2"]
    lines = [[*head, "part of the published excess"]]
    for row in rows:
        dense = "loss" in row
        cells = [
            f"{row['loss'][one]:.3f}" if dense else around(row["excess"][one]) for one in names
        ]
        size = ["100 %", row["label"], "100 %"]
        if not dense:
            size = [f"{row['keep']:.0%}", row["label"], f"{row['stored']:.1%}"]
        lines.append(
            [row["calibration"], *size, *cells, f"{row['perplexity']:.1f}",
             together(row.get("of_published"), ".3f")]
        )  # fmt: skip
    return lines


def _methods(rows: list[Row]) -> Lines:
    names = list(rows[1]["excess"])
    perplexity = "perplexity, " + " / ".join(names)
    head = ["keep", "method", "stored", *names, perplexity, "predicted", "decode, x dense"]
    lines = [[*head, "seconds"]]
    for row in rows:
        cells = [f"{row['keep']:.0%}", row["label"], f"{row['stored']:.1%}"]
        perplexities = together(row["perplexity"], ".3g")
        if "excess" not in row:  # the dense model
            lines.append([*cells, *["" for _ in names], perplexities, "", "", ""])
            continue
        cells += [*(around(row["excess"][one]) for one in names), perplexities]
        lines.append(
            [*cells, f"{row['predicted']:.3f}", between(row["decode"]), f"{row['seconds']:.0f}"]
        )
    return lines


def _mixed(rows: list[Row]) -> Lines:
    names = list(rows[0]["difference"])
    lines = [["keep", "methods", "mixed minus", *names]]
    for row in rows:
        apart = [around(row["difference"][one]) for one in names]
        lines.append([f"{row['keep']:.0%}", str(row["methods"]), row["alone"], *apart])
    return lines


def _claims(rows: list[Row]) -> Lines:
    names = list(rows[0]["excess"])
    head = ["what was done", "calibrated on", *names, "perplexity, " + " / ".join(names), "blocks"]
    lines = [head]
    for row in rows:
        removed = ", ".join(map(str, row["removed"]))
        cells = [row["label"], row["tokens"], *(around(row["excess"][one]) for one in names)]
        cells.append(together(row["perplexity"], ".3g"))
        lines.append([*cells, f"removed {removed}" if removed else ""])
    return lines


def _roles(rows: list[Row]) -> Lines:
    names = list(rows[0]["increase"])
    lines = [["each map keeps", *names]]
    for row in rows:
        lines.append([f"{row['keep']:.0%}", *(around(row["increase"][one]) for one in names)])
    return lines


def _blocks(rows: list[Row]) -> Lines:
    names = list(rows[0]["increase"])
    lines = [["all maps of a block keep", *names]]
    for row in rows:
        lines.append([f"{row['keep']:.0%}", *(between(row["increase"][one], 3) for one in names)])
    return lines


def _predictions(rows: list[Row]) -> Lines:
    lines = [["keep", "predicted", "measured"]]
    for row in rows:
        lines.append([f"{row['keep']:.0%}", f"{row['predicted']:.4f}", f"{row['measured']:.4f}"])
    return lines


def _cost(rows: list[Row]) -> Lines:
    return [["what", "measured"], *([row["what"], f"{row['value']:.2f}"] for row in rows)]


def _front(rows: list[Row]) -> Lines:
    names, asked = list(rows[0]["excess"]), list(rows[0]["tasks"])
    head = ["row", "asked", "linear bytes", "file bytes", *(f"{one}, excess" for one in names)]
    lines = [[*head, f"perplexity, {' / '.join(names)}", *asked, "on the front"]]
    for row in rows:
        sizes = [f"{part:.1%} ({mega:.1f} MB)" for part, mega in (row["linear"], row["file"])]
        lines.append(
            [row["label"], f"{row['asked']:.0%}", *sizes,
             *(around(row["excess"][one]) for one in names), together(row["perplexity"], ".4g"),
             *(_accuracy(row["tasks"].get(one)) for one in asked), "yes" if row["front"] else ""]
        )  # fmt: skip
    return lines


def _accuracy(score: Row | None) -> str:
    """Return accuracy and its 95 % interval, and McNemar's p against the dense model."""
    if not score:
        return ""
    value, low, high = score["accuracy"]
    p = f", p {score['p']:.2g}" if "p" in score else ""
    return f"{value:.1%} ({low:.1%} to {high:.1%}{p})"


def _readme(rows: list[Row]) -> Lines:
    """Return a line for each GPTQ: the largest healed model of ours that takes no more bytes."""
    lines = [
        ["linear maps, Spectrim", "loss over dense, Spectrim healed", "GPTQ bits",
         "linear maps, GPTQ", "loss over dense, GPTQ"]
    ]  # fmt: skip
    ours = [row for row in rows if row["label"] == "ours healed"]
    for row in (row for row in rows if row["label"].endswith(" gptq")):
        smaller = [one for one in ours if one["linear"][1] <= row["linear"][1]]
        best = max(smaller, key=lambda one: float(one["linear"][1]))
        lines.append(
            [f"{_size(best)} of bf16)", f"{_mean(best):.2f}", row["label"].removesuffix(" gptq"),
             f"{_size(row)})", f"{_mean(row):.2f}"]
        )  # fmt: skip
    return lines


def _size(row: Row) -> str:
    part, mega = row["linear"]
    return f"{mega:.1f} MB ({100 * part:.1f} %"


def _mean(row: Row) -> float:
    return float(sum(value for value, _ in row["excess"].values()) / len(row["excess"]))


def _decode(rows: list[Row]) -> Lines:
    lines = [["model", "tokens/s", "x dense (rounds)", "MB a token", "part of the limit"]]
    for row in rows:
        cells = [row["model"], f"{row['tokens_per_second']:.1f}", between(row["ratio"])]
        lines.append([*cells, f"{row['mb_per_token']:.1f}", f"{row['of_limit']:.0%}"])
    return lines


def _ranks(rows: list[Row]) -> Lines:
    head = ["rank", "method", "format", "ROUGE-1", "ROUGE-2", "ROUGE-L", "against dense", "loss"]
    lines = [[*head, "runtime × dense", "multiply-adds", "bytes"]]
    for row in rows:
        apart = ""
        if row["difference"]:
            value, low, high = row["difference"]
            apart = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        cells = [str(row["rank"]), row["method"], row["format"]]
        cells += [*(f"{one:.2f}" for one in row["rouge"]), apart, f"{row['loss']:.3f}"]
        sizes = (row["multiply_adds"], row["bytes"])
        cells += [f"{row['runtime']:.2f}", *(f"{one:.2f} M ({part:.0%})" for one, part in sizes)]
        lines.append(cells)
    return lines


TABLES = {
    "parts": Table("parts", _parts, told=True),
    "methods": Table("methods", _methods),
    "mixed": Table("methods", _mixed, told=True),
    "claims": Table("claims", _claims, told=True),
    "roles": Table("profile", _roles),
    "blocks": Table("profile", _blocks),
    "predictions": Table("parts", _predictions),
    "cost": Table("cost", _cost),
    "suite_measures": Table("suite", measures, told=True),
    "suite_texts": Table("suite", texts),
    "suite_tasks": Table("suite", tasks),
    "front": Table("front", _front, told=True),
    "readme": Table("front", _readme, rows="front"),
    "decode": Table("decode", _decode),
    "adapters": Table("adapters", adapters),
    "rounded_activations": Table("rounded_activations", rounded_activations),
    "rounded_inputs": Table("rounded_inputs", rounded_inputs),
    "moments": Table("moments", moments, told=True),
    "budgets": Table("budgets", budgets, told=True),
    "binary_factors": Table("binary_factors", binary_factors, told=True),
    "exports": Table("exports", exports),
    "exports_onnx": Table("exports_onnx", exports_onnx),
    "llama_cpp_types": Table("llama_cpp_types", types, told=True),
    "llama_cpp_types_gemma": Table(
        "llama_cpp_types_gemma", types, rows="llama_cpp_types", told=True
    ),
    "llama_cpp_types_wide": Table("llama_cpp_types_wide", types, rows="llama_cpp_types"),
    "decode_large": Table("decode", _decode),
    "kernels": Table("kernels", kernels),
    "kernels_large": Table("kernels_large", kernels, rows="kernels"),
    "kernels_loss": Table("kernels", kernels_loss),
    "routes": Table("routes", routes),
    "routes_large": Table("routes_large", routes, rows="routes"),
    "heal": Table("heal", heal, told=True),
    "memory": Table("memory", memory),
    "ranks": Table("ranks", _ranks),
    "serving": Table("serving", serving),
}


def measured(name: str, run: run_files.Run) -> str:
    """Return a table of a run's numbers, and how they were measured where that follows it."""
    table = TABLES[name]
    own = [row for row in run["rows"] if row["table"] == (table.rows or name)]
    said = markdown(table.lines(own))
    how = run_files.how_measured(run) if table.told else ""
    return f"{said}\n\n{how}" if how else said


def whole(name: str, run: run_files.Run) -> str:
    """Return every table of a run that it has rows for, one below the other."""
    known = {row["table"] for row in run["rows"]}
    own = [table for table in TABLES if TABLES[table].run == name and table in known]
    return "\n\n".join(measured(table, run) for table in own) + "\n"


def markdown(lines: Lines) -> str:
    """Return lines of cells as a table; the first is the head."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rest])
