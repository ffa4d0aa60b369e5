"""What few bits cost embedding and head, in nats: each table rounded, and what the model then says.

A table is rounded for real and the divergence from the dense model's predictions is measured, KL,
mean over tokens that calibration has not seen. To second order that is ½ E[Var_p(δ)] of the errors
δ of the logits, for a head; for an embedding every word counts as often as text has it. A table
that serves as both is rounded once, and both of its errors count together. Eight bits cost too
little to be told from noise: what they cost is what the bits measured nearest to them
do, times the ratio of the errors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.curve import Curve, Group
from spectrim.cutting.tables import (
    Words,
    divergence_of_words,
    embedding_moment,
    head_moment,
    with_rows,
    words_of,
)
from spectrim.files import atomic_file, key_of, locked
from spectrim.formats import formats
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job, end_sites
from spectrim.model.sites import Site, protected, tied
from spectrim.plan import Decision
from spectrim.recipe.options import Factorize
from spectrim.rounding.embedding_and_head import GRIDS, TableRounding, row_factor
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream

TOKENS = 2048  # of the search split: a divergence is told from so many within a few percent
EXACT = 8  # bits that are not measured
CHUNK = 8192  # rows at a time
EndLosses = dict[str, list[float]]
"""Nats per token by the name of a table's site, in each of the bits."""


def grid_of(bits: int, group: int) -> Grid:
    """Return the kind of few bits that a table gets; group: of neighbours, for under 8 bits."""
    return GRIDS[8] if bits == EXACT else Grid(bits, group, symmetric=False)


def bought_ends(job: Job, options: Factorize) -> list[Site]:
    """Return the tables that are bought along with the maps."""
    sites = end_sites(job) if options.ends else []
    return [site for site in sites if not protected(site, options.protect)]


def end_curves(job: Job, options: Factorize, losses: EndLosses | None) -> list[Curve]:
    """Return a curve of each table in few bits, sizes in bytes; losses: None while unknown."""
    dtype, made = job.weights.dtype(), []
    for site in bought_ends(job, options):
        form = formats.get("quantized_embedding")
        shape = (site.out_features, site.in_features, min(site.out_features, site.in_features))
        grids = [grid_of(bits, options.group) for bits in sorted(options.ends)]
        whole = site.out_features * site.in_features * dtype.itemsize
        cuts = [
            (form.stored_bytes(shape, grid, dtype), loss, grid)
            for grid, loss in zip(
                grids, losses[site.name] if losses else [0.0] * len(grids), strict=True
            )
        ]
        smaller = [cut for cut in cuts if cut[0] < whole]
        made.append(
            Curve(
                (site,),
                torch.full((len(smaller) + 1,), shape[2]),
                torch.tensor([*(size for size, *_ in smaller), whole], dtype=torch.float64),
                torch.tensor([*(loss for _, loss, _ in smaller), 0.0]),
                (Group.whole(site),) * len(smaller),
                grids=tuple(grid for *_, grid in smaller),
            )
        )
    return made


def end_losses(job: Job, options: Factorize) -> EndLosses:
    """Return what each of the bits costs each table, measured and kept in the cache."""
    sites = bought_ends(job, options)
    if not sites:
        return {}
    names, bits = [site.name for site in sites], sorted(options.ends)
    tokens = measured_tokens(job)
    key = key_of("ends", 1, job.statistics_key, tokens.digest(), names, bits, options.group)
    file = job.cache / "decompositions" / f"{key}.json"
    with locked(file):
        if not file.exists():
            walk, found = job.walk(tokens), EndLosses()
            dense = Stream(walk).through(walk.block)
            words = words_of(dense)
            grids = [grid_of(one, options.group) for one in bits]
            for done, site in enumerate(sites, start=1):
                found[site.name] = _losses(job, dense, words, site, grids)
                job.progress(done, len(sites), "measuring what bits cost embedding and head")
            with atomic_file(file) as partial:
                partial.write_text(json.dumps(found), encoding="utf-8")
    known: EndLosses = json.loads(file.read_text(encoding="utf-8"))
    return known


def measured_tokens(job: Job) -> Tokens:
    """Return the part of the search split that divergences are measured on."""
    search = job.splits.search
    some = max(1, TOKENS // search.ids.shape[1])
    return Tokens(search.ids[:some], search.mask[:some])


def end_roundings(job: Job, decisions: Mapping[str, Decision]) -> dict[str, TableRounding]:
    """Return how the tables of some decisions are rounded; decisions: by name of the site."""
    return {
        name: TableRounding(Grid(one.bits, one.group, one.symmetric), metric_of(job, name))
        for name, one in decisions.items()
        if one.block < 0 and one.bits
    }


def metric_of(job: Job, name: str) -> Float[Tensor, "hidden hidden"]:
    """Return what the errors δ of a table's rows are measured by, δᵀ M δ.

    Of a head M is the moment of what it reads; of an embedding that of the gradients of what it
    delivers, times the square of what its rows are multiplied by; of a table that serves as both
    it is the sum, as words come in text about as often as the model expects them.
    name: of the table's site.
    """
    if name == job.architecture.head:
        return head_moment(job)
    factor = row_factor(job.model.get_submodule(name), job.weights.dtype())
    delivered = factor**2 * embedding_moment(job)
    return delivered + head_moment(job) if tied(job.model) else delivered


@dataclass(frozen=True)
class _Measured:
    """What a table loses in few bits, and the mean square of its errors."""

    loss: float
    error: float


def _losses(job: Job, dense: Stream, words: Words, site: Site, grids: list[Grid]) -> list[float]:
    """Return what a table loses on each of the grids, nats per token.

    dense: the dense model's states behind its last block. words: that are rounded to tell it.
    """
    name, metric = f"{site.name}.weight", metric_of(job, site.name)
    values = job.model.get_parameter(name).detach()[words.rows].float()
    measured: dict[Grid, _Measured] = {}
    for grid in grids:
        parts = TableRounding(grid, metric)(values, job.weights.dtype())
        rounded = torch.cat([part.dequantize(grid.group) for part in parts])
        error = _error(rounded - values, metric)
        known = [one for at, one in measured.items() if at.bits < EXACT]
        if grid.bits == EXACT and known:
            close = min(known, key=lambda one: one.error)
            loss = close.loss * error / max(close.error, 1e-30)
        else:
            other = with_rows(dense, name, rounded, job=job, rows=words.rows)
            loss = divergence_of_words(dense, words, *other)
        measured[grid] = _Measured(loss, error)
    return [measured[grid].loss for grid in grids]


def _error(errors: Float[Tensor, "words hidden"], metric: Float[Tensor, "hidden hidden"]) -> float:
    """Return the mean square of errors, as the metric measures them."""
    total = sum(float(((rows @ metric) * rows).sum()) for rows in errors.split(CHUNK))
    return total / errors.numel()
