"""The calibration text for those who bring none.

With a network: a mix of hub data sets (prose, web, code, technical). Without: what every machine
has, Python's own documentation and docstrings, and text sampled from the model itself.
"""

from __future__ import annotations

import ast
import os
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from spectrim import sources, text
from spectrim.calibration import Splits, Tokens, join, split
from spectrim.errors import SpectrimError
from spectrim.job import Progress, key_of
from spectrim.run import atomic_file
from spectrim.sources import Source

HUB_MIX = (  # data set, part of the sequences: prose, web, code, technical
    ("Salesforce/wikitext:wikitext-2-raw-v1", 0.3),
    ("allenai/c4:en", 0.3),
    ("codeparrot/codeparrot-clean-valid", 0.2),
    ("ccdv/arxiv-summarization:document", 0.2),
)
OFFLINE_MIX = (("model", 0.75), ("documentation", 0.15), ("docstrings", 0.10))
SAMPLED_AT_ONCE = 16


def splits(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    size: tuple[int, int],
    seed: int,
    cache: Path,
    progress: Progress,
) -> tuple[Splits, str]:
    """Return splits of the default text, and in words which text that was.

    size: (sequences for calibration, tokens in each). The text is kept in the cache, so that a
    later run takes the same, network or not.
    """
    folder = cache / "text" / key_of("default", 2, source.fingerprint, size, seed)
    if not (folder / "splits.safetensors").exists():
        made, name = _make(source, tokenizer, size, seed, cache, progress)
        tensors = {part: getattr(made, part).ids for part in ("calibration", "search", "report")}
        with atomic_file(folder / "splits.safetensors") as partial:
            save_file(tensors, partial, metadata={"name": name})
        (folder / "name.txt").write_text(name)
    held = load_file(folder / "splits.safetensors")
    parts = {part: Tokens.full(ids) for part, ids in held.items()}
    return Splits(**parts), (folder / "name.txt").read_text()


def _make(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    size: tuple[int, int],
    seed: int,
    cache: Path,
    progress: Progress,
) -> tuple[Splits, str]:
    raise NotImplementedError
