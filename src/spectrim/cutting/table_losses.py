"""What llama.cpp's types cost embedding and head: one type measured, the others by their errors."""

from __future__ import annotations

import json

import numpy as np
import torch
from gguf import GGMLQuantizationType
from jaxtyping import Float
from torch import Tensor

from spectrim.cutting.tables import divergence, head_moment, with_rows
from spectrim.cutting.type_losses import Offer, offered
from spectrim.files import atomic_file, key_of, locked
from spectrim.job.job import Job
from spectrim.model import sites
from spectrim.rounding.few_bits import DAMPING
from spectrim.rounding.ggml import bits, dequantize, quantize
from spectrim.rounding.ggml_feedback import quantize_with_feedback
from spectrim.walk.moments import damped, inverse_root
from spectrim.walk.stream import Stream

MEASURED = 4.5  # bits of the type whose divergence is measured
SAMPLE = 1 << 13  # rows: what types lose beside each other is told from so many of a large table
DESCENT = 1 << 26  # numbers: of larger tables the codes are chosen once


class Tables:
    """Embedding and head of a model, or the one table that serves as both."""

    def __init__(self, job: Job) -> None:
        self.job = job
        architecture, model = job.architecture, job.model
        self.embed, self.head = f"{architecture.embed}.weight", f"{architecture.head}.weight"
        self.tied = sites.tied(model)
        self.names = [self.embed] if self.tied else [self.embed, self.head]
        self.walk = job.walk(job.splits.search)
        self.width: int = model.get_parameter(self.embed).shape[1]

    def values(self, name: str) -> Float[Tensor, "vocabulary hidden"]:
        """Return the numbers of a table, float32."""
        return self.job.model.get_parameter(name).detach().float()

    def sample(self, name: str) -> slice:
        """Return rows that stand for all of a table: every one, or every so many."""
        return slice(None, None, -(-len(self.values(name)) // SAMPLE))

    def packed(
        self,
        name: str,
        kind: GGMLQuantizationType,
        *,
        best: bool = False,
        plain: bool = False,
        some: slice = slice(None),
    ) -> np.ndarray:
        """Return rows of a table in a type's blocks, uint8 [vocabulary, row_bytes].

        The head's errors make up for each other by what it reads; an embedding reads nothing.
        best: take time for it. plain: as ggml quantises it. some: of which rows.
        """
        values = self.values(name)[some]
        if name == self.embed and not self.tied:
            return quantize(values, kind)
        inputs = damped(self.moment(), DAMPING)
        if plain:
            return quantize(values, kind, inputs.diagonal())
        descended = inputs.float() if best and values.numel() <= DESCENT else None
        return quantize_with_feedback(values, inverse_root(inputs).float(), kind, descended)

    def moment(self) -> Float[Tensor, "hidden hidden"]:
        """Return the second moment of what the head reads; kept in the cache."""
        return head_moment(self.job)

    def divergence(self, name: str, packed: np.ndarray, kind: GGMLQuantizationType) -> float:
        """Return the mean KL divergence on the search split that a table in a type leads to."""
        dense = Stream(self.walk).through(self.walk.block)
        other, small = with_rows(dense, name, dequantize(packed, kind), job=self.job)
        return divergence(self.walk, dense, other, small)

    def error(
        self, name: str, packed: np.ndarray, kind: GGMLQuantizationType, some: slice = slice(None)
    ) -> float:
        """Return what errors of a table amount to, words weighed by how often they come.

        some: the rows that were packed.
        """
        ids = self.job.splits.calibration.ids.flatten()
        values = self.values(name)
        weights = (torch.bincount(ids, minlength=len(values)).float() + 0.5)[some]
        values = values[some]
        weights = (weights / weights.sum())[:, None]
        total = 0.0
        reads = name == self.head or self.tied
        inputs = damped(self.moment(), DAMPING).float() if reads else None
        step = 8192
        for at in range(0, len(values), step):
            rows = slice(at, at + step)
            errors = values[rows] - dequantize(packed[rows], kind)
            measured = errors if inputs is None else errors @ inputs
            total += float((weights[rows] * measured * errors).sum())
        return total


def table_offers(job: Job, mean: float) -> list[Offer]:
    """Return what embedding and head may be stored as; kept in the cache.

    mean: bits that a number gets on average.
    """
    tables = Tables(job)
    kinds = [one.name for one in offered(tables.width, mean)]
    key = key_of("tables", 3, job.statistics_key, job.splits.search.digest(), kinds)
    file = job.cache / "types" / f"{key}.json"
    with locked(file):
        if not file.exists():
            found = {name: _losses(tables, name, mean) for name in tables.names}
            with atomic_file(file) as partial:
                partial.write_text(json.dumps(found), encoding="utf-8")
    known = json.loads(file.read_text(encoding="utf-8"))
    return [_offer(tables, name, known[name]) for name in tables.names]


def _offer(tables: Tables, name: str, losses: dict[str, float]) -> Offer:
    rows, columns = tables.job.model.get_parameter(name).shape
    kinds = tuple(GGMLQuantizationType[one] for one in losses)
    return Offer(name, (rows, columns), kinds, tuple(losses.values()))


def _losses(tables: Tables, name: str, mean: float) -> dict[str, float]:
    kinds = offered(tables.width, mean)
    some = tables.sample(name)
    errors, total = {}, len(kinds) + 1
    for done, one in enumerate(kinds):
        _tell(tables, name, done, total)
        packed = tables.packed(name, one, plain=True, some=some)
        errors[one] = tables.error(name, packed, one, some)
    _tell(tables, name, total - 1, total)
    measured = min(kinds, key=lambda one: abs(bits(one) - MEASURED))
    loss = tables.divergence(name, tables.packed(name, measured), measured)
    _tell(tables, name, total, total)
    return {one.name: loss * errors[one] / errors[measured] for one in kinds}


def _tell(tables: Tables, name: str, done: int, total: int) -> None:
    """Tell how far the types of one of the tables are tried."""
    before = tables.names.index(name) * total
    every = len(tables.names) * total
    tables.job.progress(before + done, every, "trying types for embedding and head")
