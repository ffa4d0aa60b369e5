"""The report: one HTML file that opens anywhere, without scripts or network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spectrim.report import table, words
from spectrim.report.charts import predicted_against_measured, quality_against_size
from spectrim.report.folder import Output, interval, read, rows, value
from spectrim.report.heatmap import STEPS, heatmap
from spectrim.report.spectrum import DEPTHS, panels


@dataclass(frozen=True)
class Headline:
    """One large number, what it is, and what stands behind it."""

    number: str
    unit: str
    name: str
    detail: str


def write_page(folder: Path, target: Path | None = None, others: Sequence[Path] = ()) -> Path:
    """Write the report on an output folder and return its path; an old one stays until then.

    Args:
        folder: what ``spectrim shrink`` or ``spectrim evaluate`` wrote.
        target: the file to write; None is report.html in the folder.
        others: further output folders, shown in the figure of quality against size.

    Raises:
        SpectrimError: a folder has no scores.json, or a damaged file.
    """
    written = page(read(folder), [read(other) for other in others])
    target = target or folder / "report.html"
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(written, encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def page(output: Output, others: Sequence[Output] = ()) -> str:
    """Return the report as HTML."""
    scores, plan = output.scores, output.plan
    decisions = plan.get("decisions", [])
    quality = quality_against_size(output, list(others))
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=_title(output),
            subtitle=_subtitle(output),
            headlines=_headlines(scores),
            warnings=scores.get("warnings", []),
            columns=table.columns(scores),
            groups=_groups(table.lines(scores)),
            texts=table.texts(scores),
            quality=quality and quality[0],
            left_out=quality[1] if quality else [],
            predicted=predicted_against_measured(scores.get("prediction")),
            correlation=(scores.get("prediction") or {}).get("correlation"),
            maps=[heatmap(decisions, upright=turned) for turned in (False, True) if decisions],
            steps=list(range(STEPS + 1)),
            panels=panels(decisions, output.curves),
            depths=range(DEPTHS),
            roles=_roles(decisions),
            sites=[_site(one) for one in decisions],
            samples=_samples(scores),
            refinement=_refinement(scores.get("refinement")),
            settings=_settings(scores.get("settings", {}), plan),
            recipe=output.recipe,
            words=words,
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("spectrim.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _title(output: Output) -> str:
    name = str(output.scores.get("model") or output.plan.get("model") or output.name)
    return f"{name.rstrip('/').rpartition('/')[2] or name}, made smaller"


def _subtitle(output: Output) -> str:
    plan, budget = output.plan, output.plan.get("budget", {})
    if not plan:
        return ""
    what = {"linear": "the numbers in linear maps", "bytes": "the bytes of the whole model"}
    kept = f"Budget: {100 * budget.get('keep', 1):.4g} % of {what.get(budget.get('of'), '?')}"
    how = (f"{part} {plan.get(part)}" for part in ("method", "allocator", "format"))
    return ". ".join([kept, ", ".join(how).capitalize()]) + "."


def _headlines(scores: dict[str, Any]) -> list[Headline]:
    table_rows = list(rows(scores).values())
    if len(table_rows) < 2:
        return []
    dense, small = table_rows[0], table_rows[1]
    return [
        *_quality(dense, small),
        _kept(dense, small, "linear_numbers", "of the linear numbers kept", words.count),
        _kept(dense, small, "bytes_on_disk", "of the bytes on disk kept", words.bytes_),
        *_speed(dense, small),
    ]


def _quality(dense: dict[str, Any], small: dict[str, Any]) -> list[Headline]:
    ends = interval(small, "excess_loss")
    perplexity = [words.plain(value(row, "perplexity")) for row in (dense, small)]
    detail = f"95 % interval {words.span(ends)}. " if ends else ""
    detail += f"Perplexity {perplexity[0]} → {perplexity[1]}."
    excess = words.fixed(value(small, "excess_loss"), sign=True)
    kl = f"KL from dense {words.fixed(value(small, 'kl'))} nats/token."
    return [
        Headline(excess, "nats/token", "loss above dense", detail),
        Headline(words.share(value(small, "agreement")), "", "same first choice as dense", kl),
    ]


def _kept(dense: dict[str, Any], small: dict[str, Any], key: str, name: str, show: Any) -> Headline:
    before, after = value(dense, key), value(small, key)
    part = after / before if before and after is not None else None
    detail = f"{show(after)} of {show(before)}."
    numbers = value(dense, "numbers")
    if key == "bytes_on_disk" and numbers and after is not None:
        halves = [words.share(after / (width * numbers), 0) for width in (2, 4)]
        detail += f" Of dense in fp16 {halves[0]}, in fp32 {halves[1]}."
    return Headline(words.share(part), "", name, detail)


def _speed(dense: dict[str, Any], small: dict[str, Any]) -> list[Headline]:
    if value(small, "decode") is None:
        return []
    before, after = (words.plain(value(row, "decode")) for row in (dense, small))
    prefill = words.times(value(small, "prefill_ratio"))
    detail = f"{before} → {after} tokens/s. Prefill {prefill}."
    return [Headline(words.times(value(small, "decode_ratio")), "", "decoding speed", detail)]


def _groups(lines: list[table.Line]) -> list[list[table.Line]]:
    """Return the lines in groups that the table sets apart."""
    return [list(members) for _, members in groupby(lines, key=lambda line: line.group)]


def _roles(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a summary of every role, in the order of the plan."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in decisions:
        groups.setdefault(words.role_group(one["role"]), []).append(one)
    return [
        {
            "role": role,
            "sites": len(group),
            "whole": sum(one["format"] == "dense" for one in group),
            "dense": sum(int(one["dense"]) for one in group),
            "stored": sum(int(one["stored"]) for one in group),
            "loss": sum(float(one.get("predicted_loss") or 0) for one in group),
        }
        for role, group in groups.items()
    ]


def _site(decision: dict[str, Any]) -> dict[str, Any]:
    whole = decision["format"] == "dense"
    dense = int(decision["dense"])
    return decision | {
        "rank": "" if whole else decision["rank"],
        "kept": int(decision["stored"]) / dense if dense else 1.0,
    }


def _samples(scores: dict[str, Any]) -> list[dict[str, Any]]:
    labels = table.columns(scores)
    return [
        {
            "prompt": sample.get("prompt", ""),
            "texts": [(label, _trimmed(sample[label])) for label in labels if label in sample],
        }
        for sample in scores.get("samples", [])
    ]


def _trimmed(text: str) -> str:
    """Return the text without the space that joins it to its prompt; code keeps its indents."""
    return text.rstrip() if text.startswith("  ") else text.strip(" ").rstrip()


def _refinement(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    before, after = found.get("search_loss_before"), found.get("search_loss_after")
    said = f"loss on the search split {words.fixed(before)} before, {words.fixed(after)} after."
    return f"Refinement was {'kept' if found.get('used') else 'tried and not kept'}: {said}"


def _settings(settings: dict[str, Any], plan: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the measurement was made with, as (name, value) in a fixed order."""
    calibration = plan.get("calibration")
    found = {
        "Text": settings.get("text"),
        "Tokens scored": settings.get("tokens"),
        "Window": settings.get("window"),
        "Stride": settings.get("stride"),
        "Data type": settings.get("dtype"),
        "Calibration": calibration,
        "Seed": settings.get("seed"),
        "Threads": settings.get("threads"),
        "Machine": settings.get("machine"),
        "Versions": settings.get("versions"),
        "Date": settings.get("date"),
        "Fingerprint of dense": plan.get("fingerprint"),
    }
    return [(name, _flat(one)) for name, one in found.items() if one not in (None, "", {})]


def _flat(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name} {_flat(one)}" for name, one in item.items())
    return ", ".join(map(_flat, item)) if isinstance(item, list) else str(item)
