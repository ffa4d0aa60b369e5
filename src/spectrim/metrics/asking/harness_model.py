"""A model as lm-evaluation-harness sees it: unchanged, silent, and each of its answers kept."""

from __future__ import annotations

import copy
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from spectrim.files import key_of
from spectrim.metrics._contract import Pair
from spectrim.metrics._reading import device, evaluating

MOST = 32  # sequences at once; more give a processor nothing
SHARE = 4  # at most one part in four of the memory


def batch_size(vocabulary: int, length: int, number: int, free: int) -> int:
    """Return how many sequences to read at once, a power of two up to 32.

    What fills the memory are the logits and their log-softmax, both [batch, length, vocabulary].

    Args:
        vocabulary: how many tokens the model knows.
        length: tokens of the longest sequence.
        number: bytes of one number.
        free: bytes of memory, of which a quarter is used.
    """
    fitting = free // SHARE // (2 * vocabulary * length * number)
    return 1 << (max(1, min(fitting, MOST)).bit_length() - 1)


@contextmanager
def language_model(
    pair: Pair, label: str, requests: list[Any], item: Any, tell: Callable[[int], None]
) -> Iterator[tuple[Any, int]]:
    """Give lm-eval's view of a model, and the batch; it keeps each answer until all are there."""
    from lm_eval.api.model import CachingLM
    from lm_eval.models.huggingface import HFLM

    model: Any = pair.judged[label]
    batch = _batch(pair, model, requests)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    with evaluating([model]), _as_is(model):
        held = HFLM(
            pretrained=model,
            backend="seq2seq" if encoder_decoder else "causal",
            tokenizer=copy.deepcopy(pair.tokenizer),  # it may get a padding token
            device=str(device(model)),
            batch_size=batch,
        )
        file = _partial(pair, label, item)
        if file is None:
            held.set_cache_hook(_Hook(None, tell))
            yield held, batch
            return
        caching = CachingLM(held, str(file))
        held.set_cache_hook(_Hook(caching, tell))
        try:
            yield caching, batch
        finally:
            caching.dbdict.close()
        file.unlink()


class _Hook:
    """Hears of every answer: keeps it and tells how many there are."""

    def __init__(self, caching: Any, tell: Callable[[int], None]) -> None:
        self.kept = caching and caching.get_cache_hook()
        self.done = len(caching.dbdict) if caching else 0
        self.tell = tell

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        """Keep one answer; the name is lm-eval's."""
        if self.kept:
            self.kept.add_partial(kind, request, answer)
        self.done += 1
        self.tell(self.done)


def _partial(pair: Pair, label: str, item: Any) -> Path | None:
    """Return the file that keeps the answers of a task that is under way."""
    chosen, identity = pair.evaluation, pair.evaluation.identities.get(label)
    if chosen.cache is None or identity is None:
        return None
    file = chosen.cache / "answers" / f"{key_of('lm_eval', identity, item)}.db"
    if chosen.fresh:
        file.unlink(missing_ok=True)
    return file


def _batch(pair: Pair, model: Any, requests: list[Any]) -> int:
    texts = ["".join(part for part in one.args if isinstance(part, str)) for one in requests]
    assert pair.tokenizer is not None
    longest = len(pair.tokenizer(max(texts, key=len), verbose=False).input_ids)
    vocabulary = int(model.config.get_text_config().vocab_size)
    return batch_size(vocabulary, max(longest, 1), model.dtype.itemsize, _free(device(model)))


def _free(where: torch.device) -> int:
    if where.type == "cuda":
        return int(torch.cuda.mem_get_info(where)[0])
    import psutil

    return int(psutil.virtual_memory().total)  # the same at every call, unlike what is free


@contextmanager
def _as_is(model: Any) -> Iterator[None]:
    """Keep lm-eval from tying weights anew: a factorised head has none that could be tied."""
    model.tie_weights = lambda: None
    try:
        yield
    finally:
        del model.tie_weights


@contextmanager
def silent() -> Iterator[None]:
    """Keep lm-eval's log, bars and warnings off the screen."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def heard(said: Callable[[int, int], None], count: int) -> Callable[[int], None]:
    """Return progress that reaches the screen although lm-eval is silenced."""
    out, err = sys.stdout, sys.stderr

    def tell(done: int) -> None:
        with redirect_stdout(out), redirect_stderr(err):
            said(min(done, count), count)

    return tell
