"""The calibration texts that have a name, for those who bring none of their own.

`default` is the text that ships with Spectrim: at once, network or not. `hub` is a mix of hub data
sets (prose, web, code, technical). `sampled` is drawn from the model itself, with a little of
Python's documentation and docstrings.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteriaList

from spectrim.files import atomic_file, key_of, locked
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.progress import Progress
from spectrim.text import shipped
from spectrim.text.documents import encode, read
from spectrim.text.readable import refuse_tokens
from spectrim.text.tokens import Splits, Tokens, join, split, split_sizes

HUB_MIX = (  # data set, part of the sequences: prose, web, code, technical
    ("Salesforce/wikitext:wikitext-2-raw-v1", 0.3),
    ("allenai/c4:en", 0.3),
    ("codeparrot/codeparrot-clean-valid", 0.2),
    ("ccdv/arxiv-summarization:document", 0.2),
)
SAMPLED_MIX = (("model", 0.9), ("documentation", 0.05), ("docstrings", 0.05))
DEFAULT = "default"
SHIPPED = "the text that ships with Spectrim"
PARTS = ("calibration", "search", "report")
PIECE = 256  # tokens
SAMPLED_AT_ONCE = 64  # pieces
SAMPLED = "sampled.safetensors"  # so far, where a run was interrupted
SAMPLING = "sampling text from the model"  # what is told of progress, in tokens


class Wanted(NamedTuple):
    """What splits are made for: a model, its tokenizer, their size, and where they are kept."""

    source: Source
    tokenizer: PreTrainedTokenizerBase
    size: tuple[int, int]  # sequences for calibration, tokens in each
    seed: int
    kept: Path  # what has been sampled so far, where a run was interrupted
    progress: Progress


def splits(
    name: str,
    source: Source,
    size: tuple[int, int],
    seed: int,
    cache: Path,
    progress: Progress,
) -> tuple[Splits, str]:
    """Return splits of a text with a name, and in words which text that was.

    name: one of NAMES. size: (sequences for calibration, tokens in each). The text is kept in the
    cache, so that a later run takes the same.

    Raises:
        SpectrimError: a data set of the hub cannot be had, or the model cannot read the text.
    """
    held = shipped.digest() if name == DEFAULT else ""
    folder = cache / "text" / key_of(name, 4, held, source.fingerprint, size, seed)
    file, kept = folder / "splits.safetensors", folder / SAMPLED
    with locked(file):
        if not file.exists():
            wanted = Wanted(source, sources.tokenizer(source), size, seed, kept, progress)
            made, words = _MAKERS[name](wanted)
            tensors = {part: getattr(made, part).ids for part in PARTS}
            with atomic_file(file) as partial:
                save_file(tensors, partial, metadata={"name": words})
            kept.unlink(missing_ok=True)
    parts = {part: Tokens.full(ids) for part, ids in load_file(file).items()}
    with safe_open(file, framework="pt") as about:
        return Splits(**parts), about.metadata()["name"]


def _shipped(wanted: Wanted) -> tuple[Splits, str]:
    """Return splits of the text that ships with Spectrim, filled up with text from the model."""
    sequences, length = wanted.size
    tokens = encode(shipped.passages(), wanted.tokenizer, length)
    refuse_tokens(wanted.source, tokens, SHIPPED)
    full = int(tokens.mask.all(dim=1).sum())
    held = max((n for n in range(sequences + 1) if sum(split_sizes(n)) <= full), default=0)
    parts = [split(tokens, held, wanted.seed, SHIPPED)] if held else []
    if held < sequences:
        parts.append(_drawn(wanted, sequences - held))
        words = (
            f"{SHIPPED}, which gives {held} of {sequences} sequences, and text sampled from the "
            "model for the others"
        )
        return join(parts, wanted.seed), words
    return parts[0], SHIPPED


def _hub(wanted: Wanted) -> tuple[Splits, str]:
    """Return splits of the mix of hub data sets."""
    sequences, length = wanted.size
    parts = []
    for name, share in HUB_MIX:
        count = max(round(share * sequences), 2)
        tokens = read(name, wanted.tokenizer, length, at_most=2 * sum(split_sizes(count)))
        parts.append(split(tokens, count, wanted.seed, name))
    names = ", ".join(name for name, _ in HUB_MIX)
    return join(parts, wanted.seed), f"the mix of hub data sets ({names})"


def _sampled(wanted: Wanted) -> tuple[Splits, str]:
    """Return splits of text sampled from the model, with what every machine has of Python."""
    parts = []
    for name, share in SAMPLED_MIX:
        count = max(round(share * wanted.size[0]), 2)
        if name == "model":
            parts.append(_drawn(wanted, count))
        else:
            documents = documentation() if name == "documentation" else docstrings()
            tokens = encode(documents, wanted.tokenizer, wanted.size[1])
            parts.append(split(tokens, count, wanted.seed, f"Python's {name}"))
    return (
        join(parts, wanted.seed),
        "text sampled from the model, with a little of Python's documentation and docstrings",
    )


def _drawn(wanted: Wanted, sequences: int) -> Splits:
    """Return splits of text sampled from the model."""
    size = (sum(split_sizes(sequences)), wanted.size[1])
    ids = sample(wanted.source, wanted.tokenizer, size, wanted.seed, wanted.progress, wanted.kept)
    return split(Tokens.full(ids), sequences, wanted.seed, "text sampled from the model")


_MAKERS = {DEFAULT: _shipped, "hub": _hub, "sampled": _sampled}
NAMES = tuple(_MAKERS)


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
