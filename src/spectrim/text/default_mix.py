"""The calibration text for those who bring none.

With a network: a mix of hub data sets (prose, web, code, technical). Without: what every machine
has, Python's own documentation and docstrings, and text sampled from the model itself.
"""

from __future__ import annotations

import os
import socket
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList

from spectrim.errors import SpectrimError
from spectrim.files import atomic_file, key_of, locked
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.progress import Progress
from spectrim.text.documents import encode, read
from spectrim.text.tokens import Splits, Tokens, join, split, split_sizes

HUB_MIX = (  # data set, part of the sequences: prose, web, code, technical
    ("Salesforce/wikitext:wikitext-2-raw-v1", 0.3),
    ("allenai/c4:en", 0.3),
    ("codeparrot/codeparrot-clean-valid", 0.2),
    ("ccdv/arxiv-summarization:document", 0.2),
)
OFFLINE_MIX = (("model", 0.9), ("documentation", 0.05), ("docstrings", 0.05))
PARTS = ("calibration", "search", "report")
PIECE = 256  # tokens
SAMPLED_AT_ONCE = 64  # pieces
SAMPLED = "sampled.safetensors"  # so far, where a run was interrupted
SAMPLING = "sampling text from the model"  # what is told of progress, in tokens


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
    folder = cache / "text" / key_of("default", 3, source.fingerprint, size, seed)
    file = folder / "splits.safetensors"
    with locked(file):
        if not file.exists():
            made, name = _make(source, tokenizer, size, seed, folder / SAMPLED, progress)
            tensors = {part: getattr(made, part).ids for part in PARTS}
            with atomic_file(file) as partial:
                save_file(tensors, partial, metadata={"name": name})
            (folder / SAMPLED).unlink(missing_ok=True)
    held = load_file(file)
    parts = {part: Tokens.full(ids) for part, ids in held.items()}
    with safe_open(file, framework="pt") as about:
        return Splits(**parts), about.metadata()["name"]


def _make(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    size: tuple[int, int],
    seed: int,
    kept: Path,
    progress: Progress,
) -> tuple[Splits, str]:
    parts = _from_hub(tokenizer, size, seed) if _online() else None
    if parts is not None:
        names = ", ".join(name for name, _ in HUB_MIX)
        return join(parts, seed), f"the default mix of hub data sets ({names})"
    parts = []
    for name, share in OFFLINE_MIX:
        sequences = max(round(share * size[0]), 2)
        if name == "model":
            needed = sum(split_sizes(sequences))
            sampled = sample(source, tokenizer, (needed, size[1]), seed, progress, kept)
            parts.append(
                split(Tokens.full(sampled), sequences, seed, "text sampled from the model")
            )
        else:
            documents = documentation() if name == "documentation" else docstrings()
            tokens = encode(documents, tokenizer, size[1])
            parts.append(split(tokens, sequences, seed, f"Python's {name}"))
    return (
        join(parts, seed),
        "the default mix without a network (text sampled from the model, "
        "Python's documentation and docstrings)",
    )


def _online() -> bool:
    """Return whether the hub answers, without waiting for it long."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        socket.create_connection((urlparse(constants.ENDPOINT).hostname or "", 443), 3).close()
    except OSError:
        return False
    return True


def _from_hub(
    tokenizer: PreTrainedTokenizerBase, size: tuple[int, int], seed: int
) -> list[Splits] | None:
    """Return the splits of the hub mix, or None where one of the data sets cannot be had."""
    parts = []
    for name, share in HUB_MIX:
        sequences = max(round(share * size[0]), 2)
        try:
            tokens = read(name, tokenizer, size[1], at_most=2 * sum(split_sizes(sequences)))
            parts.append(split(tokens, sequences, seed, name))
        except SpectrimError:
            return None
    return parts


def documentation() -> list[str]:
    """Return Python's own language reference, as every installation carries it for ``help()``."""
    return [topics[name] for name in sorted(topics)]


def docstrings() -> list[str]:
    """Return the source of the standard library's modules: docstrings and the code they explain."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [
        path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(folder.glob("*.py"))
        if path.stat().st_size > 4000
    ]


def sample(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    size: tuple[int, int],
    seed: int,
    progress: Progress,
    kept: Path,
) -> Int[Tensor, "sequences length"]:
    """Return text drawn token by token from the model itself, at temperature 1.

    Nothing has to be brought (data-free calibration, as in LLM-QAT, 2305.17888). Each sequence is
    made of pieces of 256 tokens that begin with the tokenizer's first token, because many short
    pieces at once are drawn several times faster than a few long ones.
    size: (sequences, tokens in each). kept: a file for what has been drawn, so that a run that was
    interrupted goes on to the same text; the caller's, who removes it when the text is safe.
    """
    sequences, length = size
    piece = min(PIECE, length)
    pieces = sequences * -(-length // piece)
    model = sources.model(source)
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    drawn: list[Tensor] = []
    with _own_generator(seed):
        if kept.exists():
            held = load_file(kept)
            drawn.extend(held["ids"].split(SAMPLED_AT_ONCE))
            torch.random.set_rng_state(held["generator"])
        for begin in range(len(drawn) * SAMPLED_AT_ONCE, pieces, SAMPLED_AT_ONCE):
            start = torch.full((min(SAMPLED_AT_ONCE, pieces - begin), 1), first or 0)

            def tell(done: int, before: int = begin, count: int = len(start)) -> None:
                progress(before * piece + done * count, pieces * piece, SAMPLING)

            drawn.append(_sample_batch(model, start, piece, tell))
            held = {"ids": torch.cat(drawn), "generator": torch.random.get_rng_state()}
            with atomic_file(kept) as partial:
                save_file(held, partial)
    return torch.cat(drawn).view(sequences, -1)[:, :length]


@contextmanager
def _own_generator(seed: int) -> Iterator[None]:
    """Draw from a seed of its own; what is drawn behind it is as if nothing had been."""
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


@torch.inference_mode()
def _sample_batch(
    model: Any, start: Int[Tensor, "batch 1"], length: int, tell: Callable[[int], None]
) -> Int[Tensor, "batch length"]:
    def never(ids: Tensor, scores: Tensor | None) -> Tensor:
        tell(ids.shape[1])
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    out: Tensor = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=length - 1,
        max_new_tokens=length - 1,
        pad_token_id=model.generation_config.pad_token_id or 0,
        stopping_criteria=StoppingCriteriaList([never]),
    )
    return out.clone()
