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
from spectrim.text import documents, respelled, used_tokens
from spectrim.text.tokens import Splits, Tokens
from spectrim.walk.stream import Stream

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
    "that neither what was read for calibration and search[text| nor {text}] uses[scripts| nor "
    "text in {scripts}], and that no other token is merged from. {proven} kept texts were cut into "
    "the same pieces before and after. Text that needs one of the others becomes more, shorter "
    "tokens: text set aside {more:percent} more[cost|, and the dense model loses {cost:fixed} nats "
    "per token of it by that]. The dense model beside it has the same tokens left."
)
COSTED = 8  # sequences set aside, on which the model is run with all tokens and with those kept
CHUNK = 64  # kept pieces that are put together into one text


def _names(value: object) -> object:
    return tuple(one.strip() for one in value.split(",")) if isinstance(value, str) else value


class Options(Part):
    """The stage that makes the vocabulary smaller; what calibrates and what chooses always stay.

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
    job.progress(1, 3, "trimming the vocabulary")
    made = fewer_rows.with_tokens(whole, kept, job.cache)
    fewer = sources.tokenizer(made)
    job.progress(2, 3, "trimming the vocabulary")
    refuse_other_pieces(tokenizer, fewer, kept, texts)
    others = _kept_texts(job, options, tokenizer, kept)
    refuse_other_pieces(tokenizer, fewer, kept, others)
    aside = job.splits.report
    lost = _nats(job, aside)
    job.adopt_model(made.folder)
    job.original = job.source  # what a teacher says of tokens that have gone is no use
    job.splits = _renumbered(job, (tokenizer, fewer), kept)
    job.__dict__.pop("statistics_key", None)
    job.progress(3, 3, "trimming the vocabulary")
    job.notes[NOTE] = {
        "tokens": tokens,
        "gone": tokens - len(kept),
        "bytes": before - job.weights.bytes(),
        "text": options.text and options.text.rpartition("/")[2],
        "scripts": ", ".join(options.scripts),
        "proven": len(texts) + len(others),
        "more": job.splits.report.counted() / aside.counted() - 1,
        "cost": _cost(job, lost, int(aside.mask[:COSTED].sum())),
    }


def _cost(job: Job, lost: float, tokens: int) -> float | None:
    """Return what the dense model loses more in the same text, nats per token that it had before.

    None where longer sequences were cut off: it is another text then.
    """
    now = job.splits.report
    return None if now.ids.shape[1] == _most(job) else (_nats(job, now) - lost) / tokens


def _most(job: Job) -> int:
    """Return how many tokens a sequence set aside may become."""
    known = getattr(job.model.config.get_text_config(), "max_position_embeddings", None)
    return known or 2 * job.splits.search.ids.shape[1]


def _nats(job: Job, tokens: Tokens) -> float:
    """Return what the dense model loses in a few sequences, nats in all."""
    walk = job.walk(Tokens(tokens.ids[:COSTED], tokens.mask[:COSTED]))
    return float(Stream(walk).through(walk.block).losses().double().sum())


def _used(
    job: Job, options: Options, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> set[int]:
    """Return the tokens that stay; the report split has no say, as it tells what others cost."""
    found = used_tokens.of_texts(texts, tokenizer) | used_tokens.of_chats(tokenizer)
    for part in (job.splits.calibration, job.splits.search):
        found |= set(part.ids[part.mask].unique().tolist())
    return found | (
        used_tokens.of_scripts(options.scripts, tokenizer) if options.scripts else set()
    )


def _kept_texts(
    job: Job, options: Options, tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]
) -> list[str]:
    """Return texts that need none of the tokens that go: of calibration and search, of scripts."""
    found = [
        text
        for part in (job.splits.calibration, job.splits.search)
        for text in respelled.whole_words(part, tokenizer)
    ]
    if options.scripts:
        known = used_tokens.of_scripts(options.scripts, tokenizer)
        pieces = [respelled.said(tokenizer, [one]) for one in sorted(known)]
        together = ["".join(pieces[at : at + CHUNK]) for at in range(0, len(pieces), CHUNK)]
        found += [*pieces, *together]
    stays = set(kept)
    return [one for one in found if one and stays.issuperset(_ids(tokenizer, one))]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text, verbose=False).input_ids
    return found


def refuse_other_pieces(
    whole: PreTrainedTokenizerBase,
    trimmed: PreTrainedTokenizerBase,
    kept: Sequence[int],
    texts: Sequence[str],
) -> None:
    """Raise SpectrimError unless a trimmed tokenizer gives texts the same pieces, and back."""
    for text in texts:
        ids = [_ids(tokenizer, text) for tokenizer in (whole, trimmed)]
        said = [one.decode(each) for one, each in zip((whole, trimmed), ids, strict=True)]
        if ids[0] != [kept[one] for one in ids[1]] or said[0] != said[1]:
            raise SpectrimError(
                "with fewer tokens the tokenizer cuts a text into other pieces, as its code "
                "changes what tokenizer.json says; leave out trim_vocabulary"
            )


def _renumbered(
    job: Job,
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    kept: Sequence[int],
) -> Splits:
    """Return the splits in the tokens that are kept; text set aside is written anew in them."""
    seen = []
    for part in (job.splits.calibration, job.splits.search):
        ids = torch.where(part.mask, part.ids, kept[0])  # what fills up is no text
        seen.append(Tokens(fewer_rows.renumbered(ids, kept, "the calibration text"), part.mask))
    aside = respelled.respelled(job.splits.report, *tokenizers, kept=kept, most=_most(job))
    return Splits(seen[0], seen[1], aside)
