"""The dense and the smaller model beside each other, as the dict that scores.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spectrim.errors import UnavailableError
from spectrim.metrics._contract import Evaluation, Measurement, Pair, Score, metrics
from spectrim.metrics._samples import PROMPTS, continuations
from spectrim.metrics._settings import describe
from spectrim.metrics.asking.harness_tasks import foreign
from spectrim.progress import Progress


def compare(
    dense: PreTrainedModel | None,
    small: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Mapping[str, Tensor],
    evaluation: Evaluation | None = None,
    progress: Progress | None = None,
    baselines: Mapping[str, PreTrainedModel] | None = None,
) -> dict[str, Any]:
    """Return every registered metric of both models, samples, settings and warnings.

    A row holds the scores of the headline text and, under "texts", those of every text and under
    "tasks" those of every task. "left_out" says which metrics of a suite could not be had, and why.
    "refinement" and "prediction" are left to who made the smaller model.

    Args:
        dense: the reference; None measures ``small`` alone.
        small: the smaller model.
        tokenizer: writes and reads the sample continuations; None leaves them out.
        texts: token windows [sequences, length] by name, the headline text first.
        evaluation: what to measure with; None takes the defaults.
        progress: called as ``progress(done, total, what)``.
        baselines: further models by label, to compare with.

    Raises:
        SpectrimError: a task that was asked for cannot be measured; windows under two tokens, a
            folder without weights, an unknown family.
    """
    models = {} if dense is None else {"dense": dense}
    models |= {"small": small, **(baselines or {})}
    pair = Pair(models, dict(texts), evaluation or Evaluation(), progress, tokenizer)
    found: Measurement = {label: [] for label in models}
    # Looked at before any is measured: an unknown task is said at once, not in an hour.
    others = bool(foreign(pair.evaluation.tasks))
    for name in [name for name in metrics.names() if _wanted(pair, name, others)]:
        try:
            measured = metrics.get(name)(pair)
        except UnavailableError as error:
            if pair.evaluation.tasks:
                raise
            pair.left_out[name] = str(error)
            continue
        for label, scores in measured.items():
            found[label] += scores
    return {
        "model": pair.evaluation.name,
        "settings": describe(pair),
        "rows": [_row(label, scores, next(iter(texts), None)) for label, scores in found.items()],
        "samples": _samples(pair, tokenizer),
        "warnings": warnings(found),
        "left_out": pair.left_out,
        "refinement": None,
        "prediction": None,
    }


def _wanted(pair: Pair, name: str, others: bool) -> bool:
    """Return whether a metric takes part: one that asks tasks does where one of them is asked.

    ``others`` says that names were asked for that no metric has.
    """
    tasks: tuple[str, ...] | None = metrics.constant(name, "TASKS")
    if tasks is None or any(pair.asked(task) for task in tasks):
        return True
    return others and bool(metrics.constant(name, "OTHER_TASKS"))


def warnings(found: Measurement) -> list[str]:
    """Return, in plain sentences, what a reader of the scores must know not to be misled."""
    said = []
    for position, (label, scores) in enumerate(found.items()):
        for score in scores:
            if "not_measured" in score.settings:
                continue
            where = f" on {score.settings['text']}" if "text" in score.settings else ""
            if not score.finite:
                said.append(f"The {score.name} of {label}{where} is not a finite number.")
            elif sentence := _of_first(score) if position == 0 else _of_others(score):
                said.append(f"{label.capitalize()}{where}: {sentence}")
    return said


def _of_first(score: Score) -> str | None:
    """Return what the reference model or the texts are to be warned of: said once for all rows."""
    if score.name == "four_bit_grid" and score.value >= 0.5:
        return (
            f"{score.value:.0%} of the dense weights in the blocks lie on a four-bit grid. They "
            "were quantised before; a file that stores them in four bits is about a quarter of a "
            "16-bit one, whatever this report counts."
        )
    if score.name == "loss" and score.n < 8:
        return f"measured on {score.n} sequence(s) only; take the numbers as a rough guide."
    return None


def _of_others(score: Score) -> str | None:
    if score.name == "linear_share" and score.value >= 1:
        return "the linear maps store as many numbers as in the dense model; nothing was saved."
    if score.name in ("prefill_ratio", "decode_ratio") and score.value < 0.95:
        return f"{score.name.removesuffix('_ratio')} runs at {score.value:.2f} x the dense speed."
    return None


def _row(label: str, scores: list[Score], headline: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label}
    texts: dict[str, dict[str, Any]] = {}
    tasks: dict[str, dict[str, Any]] = {}
    for score in scores:
        task = score.settings.get("task")
        if task is not None:
            tasks.setdefault(task, {})[score.name] = score.as_dict()
            continue
        text = score.settings.get("text")
        if text is not None:
            texts.setdefault(text, {})[score.name] = score.as_dict()
        if text in (None, headline):
            row[score.name] = score.as_dict()
    return row | {"texts": texts, "tasks": tasks}


def _samples(pair: Pair, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, str]]:
    if tokenizer is None or pair.evaluation.sample_tokens < 1:
        return []
    said = pair.said("writing samples")
    return continuations(pair.models, tokenizer, PROMPTS, pair.evaluation.sample_tokens, said)
