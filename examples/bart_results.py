"""What bart_summariser.py measured: a table, a figure a metric, knees, and a summary per rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from spectrim.allocators.knee import bend
from spectrim.metrics import Score
from spectrim.metrics.asking.certainty import paired
from spectrim.report.drawing import Drawing, Frame, Scale, axes

Row = dict[str, Any]
SHOWN = {
    "rouge1": ("ROUGE-1, × 100", 100.0),
    "rouge2": ("ROUGE-2, × 100", 100.0),
    "rougeL": ("ROUGE-L, × 100", 100.0),
    "loss": ("Loss, nats per token", 1.0),
    "runtime": ("Runtime of generation, × dense", 1.0),
    "multiply_adds": ("Multiply-adds, millions per token", 1e-6),
    "bytes": ("Bytes on disk, millions", 1e-6),
}
KNEES = ("search_loss", "loss", "rouge1", "rouge2", "rougeL")
COLOURS = ("#b4540a", "#7b3f99", "#0a5c9b", "#2d7a4f", "#8a5a00")  # of the methods, in turn
WIDTH, HEIGHT = 520, 320
FRAME = Frame(left=52, right=370, top=30, bottom=270)
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#5c6166}.label{fill:#1d1f21}.grid{stroke:#dcdedc}"
    ".axis{stroke:#8b9096}path{fill:none;stroke-width:1.75}.low_rank{stroke-dasharray:5 4}"
    ".ring{fill:#fefefc;stroke:#1d1f21;stroke-width:1.75}svg{background:#fefefc}"
    + "".join(
        f".{name}{{stroke:{one}}}circle.{name}{{fill:{one}}}"
        for name, one in zip("abcde", COLOURS, strict=True)
    )
)


def write(folder: Path, about: Row, rows: list[Row], report: Sequence[dict[str, str]]) -> None:
    """Write results.json, results.md and one SVG a metric; the first row is the dense model."""
    dense, *small = rows
    for row in small:
        before, after = (one["each"]["rougeL"] for one in (dense, row))
        score = Score("rougeL", row["rougeL"], "share", "higher", len(after), None, {})
        apart = paired(before, after, score, about["training"]["seed"])
        row["rougeL_difference"], row["rougeL_interval"] = apart.value, apart.interval
    methods = dict.fromkeys(row["method"] for row in small)
    knees = {method: _knees(dense, small, method) for method in methods}
    held = {"about": about, "rows": rows, "knees": knees}
    (folder / "results.json").write_text(
        json.dumps(held, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    for name in SHOWN:
        (folder / f"{name}.svg").write_text(figure(name, dense, small), encoding="utf-8")
    parts = [_told(about), _reads(about, dense), _table(dense, small), _knee_table(knees)]
    parts += [_figures(), _samples(dense, small, report)]
    (folder / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def knee(ranks: Sequence[int], values: Sequence[float]) -> int | None:
    """Return the rank at which a curve stands furthest above its chord, None where it never does.

    The chord joins the smallest and the largest rank; a metric that falls with the rank is turned
    over by it (Kneedle; Satopää et al., 2011, without smoothing).
    """
    points = torch.tensor(sorted(zip(ranks, values, strict=True)), dtype=torch.float64)
    at = bend(*points.T)
    return None if at is None else int(points[at, 0])


def _knees(dense: Row, small: list[Row], method: str) -> Row:
    points = [*(row for row in small if _is(row, method, "pivoted")), dense]
    ranks = [row["rank"] for row in points]
    return {name: knee(ranks, [row[name] for row in points]) for name in KNEES}


def _is(row: Row, method: str, form: str) -> bool:
    return bool(row["method"] == method and row["format"] == form)


def _told(about: Row) -> str:
    training, splits, read = about["training"], about["splits"], about["calibration_tokens"]
    epochs = [one["task"] for one in training["history"]]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"A BART of {training['numbers'] / 1e6:.2f} M numbers ({training['blocks']} + "
        f"{training['blocks']} blocks, width {training['width']}, float32), trained from scratch "
        f"for {training['seconds'] / 60:.1f} min ({epochs.count('denoising')} epochs of denoising, "
        f"{epochs.count('summaries')} of summaries; {training['steps']} steps, "
        f"{training['tokens_read']:,} tokens; seed {training['seed']}) on "
        f"{', '.join(about['data'])}. Dialogues: {splits['train']} for training, "
        f"{splits['search']} for search, {splits['report']} for this report, none in two. The "
        f"checkpoint that was best on the search split is kept. K, Q, V and O hold "
        f"{about['attention']:.0%} of its numbers; only they are cut. Statistics: "
        f"{about['calibration']} training dialogues, {read['dialogues']:,} tokens in the encoder "
        f"and {read['summaries']:,} in the decoder. {about['machine']}; {versions}. ROUGE: F1 over "
        "stems, × 100, greedy decoding; against dense: difference of ROUGE-L with its 95 % paired "
        "bootstrap interval. Runtime: a batch of summaries of equal length, in turns with the "
        "dense model in one process, median ratio of the rounds; the dense model against itself "
        "shows the noise."
    )


def _reads(about: Row, dense: Row) -> str:
    return (
        f"Does the model read? Given the dialogue of another summary, the dense model's loss is "
        f"{about['mismatched_loss']:.3f} in place of {dense['loss']:.3f}; it writes "
        f"{len(set(dense['texts']))} different summaries of {len(dense['texts'])} dialogues."
    )


def _table(dense: Row, small: list[Row]) -> str:
    lines = [
        "| rank | method | format | ROUGE-1 | ROUGE-2 | ROUGE-L | against dense | loss | "
        "runtime × dense | multiply-adds | bytes |",
        "|---:|---|---|---:|---:|---:|---|---:|---:|---:|---:|",
        _line(dense, dense, ""),
    ]
    for row in small:
        low, high = (100 * end for end in row["rougeL_interval"])
        apart = f"{100 * row['rougeL_difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(_line(row, dense, apart))
    note = (
        "Where low_rank has no row, its r(m + n) numbers would be no fewer than the matrix's own "
        "mn: two factors save only below rank mn / (m + n)."
    )
    return "\n".join(lines) + "\n\n" + note


def _line(row: Row, dense: Row, apart: str) -> str:
    cells = [str(row["rank"]), row["method"], row["format"]]
    cells += [f"{100 * row[name]:.2f}" for name in ("rouge1", "rouge2", "rougeL")]
    cells += [apart, f"{row['loss']:.3f}", f"{row['runtime']:.2f}"]
    for name in ("multiply_adds", "bytes"):
        cells.append(f"{row[name] / 1e6:.2f} M ({row[name] / dense[name]:.0%})")
    return f"| {' | '.join(cells)} |"


def _knee_table(knees: dict[str, Row]) -> str:
    lines = [
        "Knee (the rank furthest above the chord; pivoted). The loss on the search split is the "
        "one to choose by; the others describe the report's curves.",
        "",
        "| method | loss, search split | loss | ROUGE-1 | ROUGE-2 | ROUGE-L |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method, found in knees.items():
        lines.append(f"| {method} | {' | '.join(str(found[name] or '–') for name in KNEES)} |")
    return "\n".join(lines)


def _figures() -> str:
    return "\n".join(f"![{label} against rank]({name}.svg)" for name, (label, _) in SHOWN.items())


def _samples(dense: Row, small: list[Row], report: Sequence[dict[str, str]]) -> str:
    """Return one dialogue's summary at every rank: the one whose dense ROUGE-L is the median."""
    scores = dense["each"]["rougeL"]
    at = sorted(range(len(scores)), key=lambda index: (scores[index], index))[len(scores) // 2]
    lines = [
        f"One summary per rank (report dialogue {at}, the median of the dense model's ROUGE-L)."
    ]
    lines += ["", "| rank | method | summary |", "|---:|---|---|"]
    lines.append(f"| | a person | {_cell(report[at]['summary'])} |")
    for row in [dense, *(row for row in small if row["format"] == "pivoted")]:
        lines.append(f"| {row['rank']} | {row['method']} | {_cell(row['texts'][at])} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "(nothing)"


def figure(name: str, dense: Row, small: list[Row]) -> str:
    """Return a metric against the rank as a stand-alone SVG, the dense model as a ring."""
    label, scale = SHOWN[name]
    values = [scale * row[name] for row in [dense, *small]]
    margin = 0.06 * (max(values) - min(values)) or 0.1
    drawing = Drawing(WIDTH, HEIGHT, f"{label} against rank", "chart")
    x = Scale(0, dense["rank"], FRAME.left, FRAME.right)
    y = Scale(min(values) - margin, max(values) + margin, FRAME.bottom, FRAME.top)
    axes(drawing, FRAME, x, y, ("rank of K, Q, V and O", label))
    lines = dict.fromkeys((row["method"], row["format"]) for row in small)
    methods = list(dict.fromkeys(method for method, _ in lines))
    for place, (method, form) in enumerate(lines):
        colour = "abcde"[methods.index(method) % len(COLOURS)]
        points = [(x(r["rank"]), y(scale * r[name])) for r in small if _is(r, method, form)]
        drawing.path(points, f"{colour} {form}")
        for cx, cy in points:
            drawing.add("circle", {"cx": cx, "cy": cy, "r": 2.5, "class": colour})
        at = FRAME.top + 16 * place
        drawing.path([(FRAME.right + 12, at), (FRAME.right + 34, at)], f"{colour} {form}")
        drawing.text(FRAME.right + 38, at + 4, f"{method}, {form}", anchor="start")
    ring: dict[str, str | float] = {"class": "ring", "r": 4.0}
    ring |= {"cx": x(dense["rank"]), "cy": y(scale * dense[name])}
    drawing.add("circle", ring, hint="dense")
    return str(drawing.done()).replace(">", f"><style>{STYLE}</style>", 1)
