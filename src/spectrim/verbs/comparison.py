"""Dense and smaller folder measured in one run, with the baselines that a sceptic asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spectrim.errors import UnavailableError
from spectrim.files import key_of
from spectrim.metrics import Evaluation, compare
from spectrim.model import sources
from spectrim.model.fewer_rows import kept_tokens
from spectrim.model.sources import Source
from spectrim.progress import Progress
from spectrim.rounding import baselines
from spectrim.text import default_mix, documents
from spectrim.verbs import earlier
from spectrim.version import __version__

SECOND = "Python's documentation"
FLATTERED = (
    "Most of the default text was sampled from the dense model itself, so it flatters both models; "
    "'spectrim evaluate --text' measures on a text of yours."
)

SAME_TOKENS = (
    "The dense model is measured with the {count} tokens that the smaller one has left, and its "
    "bytes are those of that model."
)


def compare_folders(
    dense: Source,
    small: Source | Path,
    texts: Mapping[str, Tensor],
    chosen: Evaluation,
    progress: Progress,
    name: str,
) -> dict[str, Any]:
    """Return the scores of the smaller model beside its dense model and the baselines.

    Baselines are the dense model in int8 and int4, weights only, and the best earlier run of at
    most the same bytes on the same text.

    Args:
        dense: the reference.
        small: the smaller model, or its folder where its content was not hashed yet.
        texts: token windows by name, the headline text first.
        chosen: what to measure; names, folders, identities and baselines are filled in here.
        progress: called as ``progress(done, total, what)``.
        name: what to call the smaller model among other runs.
    """
    if isinstance(small, Path):
        small = Source(str(small), small, sources.fingerprint(small))
    tokenizer = sources.tokenizer(dense)
    big, little = sources.model(dense), sources.model(small)
    beside, why = _baselines(big)
    contents = {"dense": dense.fingerprint, "small": small.fingerprint}
    contents |= {label: f"{dense.fingerprint} {label} {baselines.SCHEME}" for label in beside}
    around = _around(dense)
    identities = {label: key_of(content, around) for label, content in contents.items()}
    chosen = replace(
        chosen,
        name=dense.name,
        folders={"dense": dense.folder, "small": small.folder},
        identities=identities,
        baselines={label: baselines.stored_bytes(one) for label, one in beside.items()},
    )
    scores = compare(big, little, tokenizer, texts, chosen, progress, beside)
    scores["left_out"] |= why
    if kept := kept_tokens(dense.folder):
        scores["warnings"].append(SAME_TOKENS.format(count=len(kept)))
    if any("sampled" in text for text in texts):
        scores["warnings"].append(FLATTERED)
    if chosen.cache is not None:
        scores["earlier"] = earlier.record(chosen.cache, scores, contents, texts, name)
    return scores


def small_model(folder: Path) -> PreTrainedModel:
    """Return the model in an output folder, in eval mode, whether or not it has its name yet."""
    return sources.model(Source(str(folder), folder, ""))


def second_text(tokenizer: PreTrainedTokenizerBase, like: Tensor) -> dict[str, Tensor]:
    """Return text unlike most calibration texts, which every machine has, in windows ``like``."""
    found = documents.encode(default_mix.documentation(), tokenizer, like.shape[1])
    return {SECOND: found.ids[: len(like)]}


def _around(source: Source) -> list[object]:
    """Return what answers depend on besides weights: tokenizer, versions, threads, code."""
    files = sorted(source.folder.glob("*token*")) + sorted(source.folder.glob("vocab*"))
    words = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()]
    return [words, torch.__version__, transformers.__version__, __version__,
            torch.get_num_threads(), torch.cuda.is_available()]  # fmt: skip


def _baselines(dense: PreTrainedModel) -> tuple[dict[str, PreTrainedModel], dict[str, str]]:
    try:
        return baselines.of(dense), {}
    except UnavailableError as error:
        return {}, {"baselines": str(error)}
