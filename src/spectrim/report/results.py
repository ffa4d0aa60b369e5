"""The scores as the evaluation results that the model hub reads from a card."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult

from spectrim.report.folder import interval, rows, value

_TEXT_SCORES = ("loss", "perplexity", "excess_loss", "kl", "agreement", "next_token")


def results(scores: dict[str, Any], kind: str) -> list[EvalResult]:
    """Return the smaller model's results on all texts and tasks, each with n and interval.

    What was not measured or is no number is left out. ``kind`` is the hub's name of what the model
    is for, such as "text-generation".
    """
    row = rows(scores).get("small", {})
    found = []
    for text, own in row.get("texts", {}).items():
        known = {name: own[name] for name in _TEXT_SCORES if name in own}
        found += _results(kind, text, known)
    for task, own in row.get("tasks", {}).items():
        found += _results(kind, task, own)
    return found


def _results(kind: str, data: str, own: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=kind,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "text",
            dataset_name=data,
            metric_type=name,
            metric_name=_named(name, str(own[name].get("unit") or "")),
            metric_value=_rounded(number),
            metric_args=_certainty(own, name),
        )
        for name in own
        if (number := value(own, name)) is not None
    ]


def _named(name: str, unit: str) -> str:
    said = name.replace("_", " ")
    return said if unit in ("", said) else f"{said}, {unit}"


def _rounded(number: float) -> float:
    """Return six significant digits: more would only make the card longer."""
    return float(f"{number:.6g}")


def _certainty(own: dict[str, Any], name: str) -> dict[str, Any]:
    ends = interval(own, name)
    known: dict[str, Any] = {"n": int(own[name].get("n") or 0)}
    return known | ({"interval": [_rounded(end) for end in ends]} if ends else {})
