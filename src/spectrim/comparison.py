"""Dense and smaller folder measured in one run, with the baselines that a sceptic asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spectrim import baselines, default_text, earlier, sources, text
from spectrim.errors import UnavailableError
from spectrim.job import Progress
from spectrim.metrics import Evaluation, compare
from spectrim.sources import Source

SECOND = "Python's documentation"


def compare_folders(
    dense: Source,
    small: Path,
    texts: Mapping[str, Tensor],
    chosen: Evaluation,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    """Return the scores of the model in ``small`` beside its dense model and the baselines.

    Baselines are the dense model in int8 and int4, weights only, and the best earlier run of at
    most the same bytes on the same text.

    Args:
        dense: the reference.
        small: folder of the smaller model.
        texts: token windows by name, the headline text first.
        chosen: what to measure; names, folders, identities and baselines are filled in here.
        progress: called as ``progress(done, total, what)``.
        name: what to call the smaller model among other runs.
    """
    tokenizer = sources.tokenizer(dense)
    big, little = sources.model(dense), small_model(small)
    beside, why = _baselines(big)
    identities = {"dense": dense.fingerprint, "small": sources.fingerprint(small)}
    identities |= {label: f"{dense.fingerprint} {label}" for label in beside}
    chosen = replace(
        chosen,
        name=dense.name,
        folders={"dense": dense.folder, "small": small},
        identities=identities,
        baselines=tuple(beside),
    )
    scores = compare(big, little, tokenizer, texts, chosen, progress, beside)
    scores["left_out"] |= why
    if chosen.cache is not None:
        scores["earlier"] = earlier.record(chosen.cache, scores, identities, texts, name)
    return scores


def small_model(folder: Path) -> PreTrainedModel:
    """Return the model in an output folder, in eval mode, whether or not it has its name yet."""
    return sources.model(Source(str(folder), folder, ""))


def second_text(tokenizer: PreTrainedTokenizerBase, like: Tensor) -> dict[str, Tensor]:
    """Return text unlike most calibration texts, which every machine has, in windows ``like``."""
    found = text.encode(default_text.documentation(), tokenizer, like.shape[1])
    return {SECOND: found.ids[: len(like)]}


def _baselines(dense: PreTrainedModel) -> tuple[dict[str, PreTrainedModel], dict[str, str]]:
    try:
        return baselines.of(dense), {}
    except UnavailableError as error:
        return {}, {"baselines": str(error)}
