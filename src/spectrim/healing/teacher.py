"""What the dense model says of every token of a text: computed once, kept in the cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrim.files import atomic_file, key_of, locked
from spectrim.healing.student import Reader
from spectrim.job.job import Job
from spectrim.model import sources
from spectrim.walk.walk import HEAD_CHUNK, BlockWalk


@dataclass(frozen=True)
class Answers:
    """What the teacher says of the predicted tokens of one batch.

    top: log-probabilities of its most likely tokens, at the temperature; ids: which those are.
    hidden: what its head was given, where that was asked for.
    """

    top: Float[Tensor, "tokens k"]
    ids: Int[Tensor, "tokens k"]
    hidden: Tensor | None


class Teacher:
    """The dense model's answers in a file, read batch by batch."""

    def __init__(self, file: Path, walk: BlockWalk, hidden: bool) -> None:
        counts = [int((walk.targets(start) != -100).sum()) for start in walk.starts]
        ends = list(accumulate(counts))
        begins = [end - count for end, count in zip(ends, counts, strict=True)]
        self.rows = dict(zip(walk.starts, zip(begins, ends, strict=True), strict=True))
        self.file = file
        self.with_hidden = hidden

    def answers(self, start: int, device: torch.device) -> Answers:
        """Return the answers for the batch that begins at a sequence."""
        begin, end = self.rows[start]
        with safe_open(self.file, framework="pt") as file:

            def read(name: str) -> Tensor:
                rows: Tensor = file.get_slice(name)[begin:end].to(device)
                return rows

            hidden = read("hidden") if self.with_hidden else None
            return Answers(read("top"), read("ids").long(), hidden)


@dataclass(frozen=True)
class Question:
    """What the teacher is asked of every token.

    top_k: tokens kept of each distribution. temperature: by which logits are divided. hidden:
    whether the states in front of the head are kept too.
    """

    top_k: int
    temperature: float
    hidden: bool


def ask(job: Job, walk: BlockWalk, question: Question) -> Teacher:
    """Return the teacher's answers for all batches of a walk, computed where the cache lacks them.

    The teacher is the model as it came.
    """
    source = job.original or job.source
    vocabulary = int(job.model.config.get_text_config().vocab_size)
    question = replace(question, top_k=min(question.top_k, vocabulary))
    key = key_of("teacher", 1, source.fingerprint, walk.tokens.digest(), walk.batch,
                 question.top_k, question.temperature, question.hidden)  # fmt: skip
    file = job.cache / "teacher" / f"{key}.safetensors"
    with locked(file):
        if not file.exists():
            model: Any = sources.model(source, dtype=job.compute_dtype)
            tensors = _asked(job, Reader(model), walk, question)
            with atomic_file(file) as partial:
                save_file(tensors, partial)
    return Teacher(file, walk, question.hidden)


@torch.no_grad()
def _asked(job: Job, reader: Reader, walk: BlockWalk, question: Question) -> dict[str, Tensor]:
    """Return the answers as they are stored, all tokens in a row."""
    count, k = walk.predicted(), question.top_k
    # filled in place: small tensors kept between logits that come and go would pin the heap
    answers = {"top": torch.empty(count, k), "ids": torch.empty(count, k, dtype=torch.int32)}
    at = 0
    for done, start in enumerate(walk.starts, start=1):
        hidden = reader.hidden(reader.model, walk, start)
        if question.hidden:
            states = answers.setdefault("hidden", hidden.new_empty(count, hidden.shape[-1]))
            states[at : at + len(hidden)] = hidden
        for rows in hidden.split(HEAD_CHUNK):
            logs = torch.log_softmax(reader.logits(rows) / question.temperature, -1)
            top, ids = logs.topk(k, dim=-1)
            answers["top"][at : at + len(rows)] = top
            answers["ids"][at : at + len(rows)] = ids
            at += len(rows)
        job.progress(done, len(walk.starts), "asking the dense model")
    return answers
