"""Leave tokens out of embedding, head and tokenizer that the text of interest never uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BeforeValidator
from transformers import PreTrainedTokenizerBase

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.model import fewer_rows, sources
from spectrim.recipe.options import Part
from spectrim.text import documents, used_tokens
from spectrim.text.tokens import Splits, Tokens

LEAVES = ("other tokens",)
REFUSES = {
    "changed maps": "trim_vocabulary takes the model as it came; put trim_vocabulary first",
    "damage": "trim_vocabulary takes the model as it came; put trim_vocabulary first",
    "other blocks": "trim_vocabulary takes the model as it came; put trim_vocabulary first",
    "other tokens": "trim_vocabulary leaves out all tokens at once; name both texts in one",
}
MOST = 20_000_000  # characters of a data set
NOTE = "trimmed"
REPORT = (
    "{gone} of {tokens} tokens have left embedding, head and tokenizer, {bytes:mebibytes} MiB: all "
    "that neither what was read for calibration[text| nor {text}] uses[scripts| nor text in "
    "{scripts}], and that no other token is merged from. Text that needs one of them becomes more, "
    "shorter tokens. The dense model beside it has the same tokens left."
)


def _names(value: object) -> object:
    return tuple(one.strip() for one in value.split(",")) if isinstance(value, str) else value


class Options(Part):
    """The stage that makes the vocabulary smaller; what is read for calibration always stays.

    text: whose tokens stay too: a text file, a .jsonl file or a data set, as for calibration; of a
        data set its first 20 million characters.
    scripts: all tokens stay that texts in these scripts of Unicode may use: Latin, Cyrillic, Han.
    """

    text: str | None = None
    scripts: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()


def trim_vocabulary(job: Job, options: Options) -> None:
    """Go on with a model of fewer tokens, numbered anew; every text kept has the same pieces.

    Raises:
        SpectrimError: an earlier stage changed the model, there is no such text or script, or the
            tokenizer or the model is of a kind that cannot be trimmed.
    """
    if job.blocks is not None or job.orders:
        raise SpectrimError(REFUSES["changed maps"])
    whole, tokenizer = job.source, sources.tokenizer(job.source)
    texts = documents.texts(options.text, tokenizer, MOST) if options.text else []
    kept = fewer_rows.needed(whole, _used(job, options, tokenizer, texts))
    tokens, before = job.model.config.get_text_config().vocab_size, job.weights.bytes()
    job.progress(1, 2, "trimming the vocabulary")
    made = fewer_rows.with_tokens(whole, kept, job.cache)
    job.progress(2, 2, "trimming the vocabulary")
    refuse_other_pieces(tokenizer, sources.tokenizer(made), kept, texts)
    job.adopt_model(made.folder)
    job.original = job.source  # what a teacher says of tokens that have gone is no use
    job.splits = _renumbered(job.splits, kept)
    job.__dict__.pop("statistics_key", None)
    job.notes[NOTE] = {
        "tokens": tokens,
        "gone": tokens - len(kept),
        "bytes": before - job.weights.bytes(),
        "text": options.text and options.text.rpartition("/")[2],
        "scripts": ", ".join(options.scripts),
    }


def _used(
    job: Job, options: Options, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> set[int]:
    found = used_tokens.of_texts(texts, tokenizer) | used_tokens.of_chats(tokenizer)
    for part in (job.splits.calibration, job.splits.search, job.splits.report):
        found |= set(part.ids[part.mask].unique().tolist())
    return found | (
        used_tokens.of_scripts(options.scripts, tokenizer) if options.scripts else set()
    )


def refuse_other_pieces(
    whole: PreTrainedTokenizerBase,
    trimmed: PreTrainedTokenizerBase,
    kept: Sequence[int],
    texts: Sequence[str],
) -> None:
    """Raise SpectrimError unless a trimmed tokenizer gives texts the same pieces, and back."""
    for text in texts:
        ids = [tokenizer(text, verbose=False).input_ids for tokenizer in (whole, trimmed)]
        said = [one.decode(each) for one, each in zip((whole, trimmed), ids, strict=True)]
        if ids[0] != [kept[one] for one in ids[1]] or said[0] != said[1]:
            raise SpectrimError(
                "with fewer tokens the tokenizer cuts a text into other pieces, as its code "
                "changes what tokenizer.json says; leave out trim_vocabulary"
            )


def _renumbered(splits: Splits, kept: Sequence[int]) -> Splits:
    parts = []
    for part in (splits.calibration, splits.search, splits.report):
        ids = torch.where(part.mask, part.ids, kept[0])  # what fills up is no text
        parts.append(Tokens(fewer_rows.renumbered(ids, kept, "the calibration text"), part.mask))
    return Splits(*parts)
