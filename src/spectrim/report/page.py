"""The report: one HTML file that opens anywhere, without scripts or network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from spectrim.model.architectures import role_group
from spectrim.outputs.folder import output_file
from spectrim.outputs.manifest import is_page
from spectrim.outputs.refusals import refuse_file
from spectrim.report import notes, points, table, tasks, words
from spectrim.report.attention import attention_figures, head
from spectrim.report.bars import figures
from spectrim.report.charts import how_far_off, predicted_against_measured
from spectrim.report.cosine import cosine_by_block
from spectrim.report.folder import Output, read
from spectrim.report.front import quality_front
from spectrim.report.headlines import headlines
from spectrim.report.heatmap import STEPS, cells, heatmap, kept_shade, loss_shade
from spectrim.report.origin import full_name
from spectrim.report.runs import asked_otherwise, merged
from spectrim.report.sensitivity import halved
from spectrim.report.spectrum import DEPTHS, panels


def write_page(folder: Path, target: Path | None = None, others: Sequence[Path] = ()) -> Path:
    """Write the report on an output folder and return its path; an old one stays until then.

    Args:
        folder: what ``spectrim shrink`` or ``spectrim evaluate`` wrote.
        target: the file to write; None is report.html in the folder.
        others: further output folders: points in the figures, and a column each in a table.

    Raises:
        SpectrimError: a folder has no scores.json, or a damaged file.
    """
    target = target or folder / "report.html"
    refuse_file(target, is_page)
    written = page(read(folder), [read(other) for other in others])
    with output_file(target) as partial:
        partial.write_text(written, encoding="utf-8")
    return target


def page(output: Output, others: Sequence[Output] = ()) -> str:
    """Return the report as HTML."""
    scores, plan = output.scores, output.plan
    decisions = plan.get("decisions", [])
    found = _known(output, others) | _maps(decisions, output.curves) | _tasks(scores)
    return (
        environment()
        .get_template("page.html")
        .render(
            title=f"{full_name(output)}, made smaller",
            subtitle=_subtitle(output),
            headlines=headlines(scores),
            warnings=scores.get("warnings", []),
            columns=table.columns(scores),
            groups=_groups(table.lines(scores)),
            texts=table.texts(scores),
            predicted=predicted_against_measured(scores.get("prediction")),
            off=how_far_off(scores.get("prediction")),
            correlation=(scores.get("prediction") or {}).get("correlation"),
            steps=list(range(STEPS + 1)),
            panels=panels(decisions, output.curves),
            depths=range(DEPTHS),
            roles=_roles(decisions),
            sites=[_site(one) for one in decisions],
            samples=_samples(scores),
            refinement=_refinement(scores.get("refinement")),
            notes=notes.sentences(scores),
            settings=_settings(scores.get("settings", {}), plan),
            recipe=output.recipe,
            words=words,
            **found,
        )
    )


def _known(output: Output, others: Sequence[Output]) -> dict[str, Any]:
    """Return the figures and tables of every model that is known, further folders among them."""
    found, left_out = points.known(output, others)
    on_grid, best = points.on_grid(output.scores), points.front(found)
    runs = merged(output, others) if others else {}
    return {
        "quality": quality_front(found),
        "speed": quality_front(found, "speed") if others else None,
        "left_out": left_out,
        "known": [
            (one, one in best, points.remark(one, on_grid)) for one in found if len(found) > 2
        ],
        "dense_bytes": next((one.size for one in found if one.style == "dense"), None),
        "verdicts": points.verdicts(found),
        "run_names": table.columns(runs),
        "run_groups": _groups(table.lines(runs)) if runs else [],
        "run_tasks": _by_task(tasks.lines(runs)) if runs else [],
        "run_tasks_apart": asked_otherwise([output, *others]),
        "run_task_names": tasks.columns(runs),
    }


def _maps(decisions: list[dict[str, Any]], curves: dict[str, Any]) -> dict[str, Any]:
    """Return the maps of blocks and roles, each level and upright."""
    grid, halves = cells(decisions), halved(decisions, curves)
    shades = {
        "kept": (grid, kept_shade()),
        "losses": (grid, loss_shade(grid, "Predicted loss, by role and block")),
        "sensitivity": (halves, loss_shade(halves, "Predicted loss at half the rank")),
    }
    shown = {name: one for name, one in shades.items() if _shows(name, one[0])}
    return {
        "maps": {
            name: [heatmap(*one, upright=turned) for turned in (False, True)]
            for name, one in shown.items()
        }
    }


def _shows(name: str, grid: list[Any]) -> bool:
    return bool(grid) and (name == "kept" or any(cell.loss > 0 for cell in grid))


def _tasks(scores: dict[str, Any]) -> dict[str, Any]:
    """Return what the tasks say, as tables and figures."""
    chosen = head(scores)
    return {
        "task_names": tasks.columns(scores),
        "tasks": _by_task(tasks.lines(scores)),
        "bars": figures(scores),
        "unmeasured": tasks.unmeasured(scores),
        "cosine": cosine_by_block(scores),
        "head": chosen,
        "attention": attention_figures(chosen) if chosen else [],
    }


def _by_task(lines: list[tasks.TaskLine]) -> list[tuple[str, list[tasks.TaskLine]]]:
    return [(task, list(own)) for task, own in groupby(lines, key=lambda line: line.task)]


def environment() -> Environment:
    """Return what fills the templates of pages."""
    return Environment(
        loader=PackageLoader("spectrim.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _subtitle(output: Output) -> str:
    plan, budget = output.plan, output.plan.get("budget", {})
    if not plan:
        return ""
    what = {"linear": "the numbers in linear maps", "bytes": "the bytes of the whole model"}
    what["linear bytes"] = "the bytes of linear maps"
    kept = f"Budget: {100 * budget.get('keep', 1):.4g} % of {what.get(budget.get('of'), '?')}"
    how = (f"{part} {plan.get(part)}" for part in ("method", "allocator", "format"))
    return ". ".join([kept, ", ".join(how).capitalize()]) + "."


def _groups(lines: list[table.Line]) -> list[list[table.Line]]:
    """Return the lines in groups that the table sets apart."""
    return [list(members) for _, members in groupby(lines, key=lambda line: line.group)]


def _roles(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a summary of every role, in the order of the plan."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in decisions:
        groups.setdefault(role_group(one["role"]), []).append(one)
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
        "format": words.stored_as(decision),
        "rank": "" if whole else words.whole(decision.get("rank")),
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
