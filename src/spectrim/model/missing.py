"""What to tell of a folder that is no whole model: what it is instead, where that can be told."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

_PREFIXES = {"_orig_mod.": "torch.compile", "module.": "DistributedDataParallel"}
_CODES = (".qweight", ".qzeros", ".g_idx", ".absmax", ".SCB", ".weight_packed")


def missing_tensors(
    folder: Path, names: Collection[str], missing: Collection[str], head: str
) -> str:
    """Return what to tell of a folder that lacks some of the model's tensors.

    names: of the tensors in its files. missing: the model's own names of those that it lacks.
    head: the path of the output head.
    """
    first = next(iter(missing))
    lacks = f"{folder} lacks {len(missing)} of the model's tensors, '{first}' first"
    for prefix, by in _PREFIXES.items():
        if all(name.startswith(prefix) for name in names):
            return f"{lacks}, as {by} put '{prefix}' before all names; save the model without it"
    if any(name.endswith(_CODES) for name in names):
        return f"{lacks}, as its weights are quantised; expected the model before it was"
    if all(name.startswith(f"{head}.") for name in missing):
        return (
            f"{lacks}: it has no output head, as models for embeddings have none; expected a "
            "language model, or tie_word_embeddings in its config.json"
        )
    return f"{lacks}; fetch the model again"


def missing_config(folder: Path) -> str:
    """Return what to tell of a folder without config.json."""
    if (folder / "adapter_config.json").is_file():
        return f"{folder} is an adapter without its model; merge it into the model first"
    return f"{folder} has no config.json; expected a model folder"


def unread_tokenizer(folder: Path, reason: str) -> str:
    """Return what to tell of a tokenizer that cannot be read; reason: what transformers says."""
    pieces = any((folder / name).is_file() for name in ("tokenizer.model", "spiece.model"))
    if pieces and not (folder / "tokenizer.json").is_file() and not find_spec("sentencepiece"):
        return f"the tokenizer in {folder} needs sentencepiece; run `pip install sentencepiece`"
    return f"the tokenizer in {folder} cannot be read ({reason}); fetch the model again"
