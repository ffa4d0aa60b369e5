"""What the loss makes of a model of which only one part is cut: a site, a role or a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, isfinite

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.cutting.allocation import Unit, decided
from spectrim.cutting.cut import of_block, try_out
from spectrim.cutting.trial import loss_key
from spectrim.errors import SpectrimError
from spectrim.files import Record, key_of
from spectrim.job.job import Job
from spectrim.model.architectures import role_group
from spectrim.plan import Decision
from spectrim.recipe.options import Factorize
from spectrim.text.tokens import Tokens
from spectrim.walk.stream import Stream
from spectrim.walk.walk import HEAD_CHUNK

ALONE, FORWARDS, BACKWARDS = "alone", "first to last", "last to first"
COMPARED = 256  # tokens whose whole distributions are compared: they are kept in memory
STRETCH, STRETCHES = 128, 16  # consecutive tokens that count as one, and how many at least


@dataclass(frozen=True)
class PartialCut:
    """Sites that are cut while everything else stays dense.

    size: the part of each map's numbers that stays, at most. how: "alone", or which way blocks were
    added to those cut before. block: None where it is of several. decisions: none are dense.
    """

    block: int | None
    role: str
    site: str
    size: float
    how: str
    decisions: tuple[Decision, ...]

    @property
    def rank(self) -> int | None:
        """Return the rank, None where there are several."""
        ranks = {decision.rank for decision in self.decisions}
        return ranks.pop() if len(ranks) == 1 else None

    @property
    def predicted(self) -> float:
        """Return the increase of the loss that the curves predict, nats per token."""
        return sum(decision.predicted_loss for decision in self.decisions)

    @property
    def key(self) -> str:
        """Return a name for what is cut and how, whatever it was asked for as."""
        return key_of(sorted((d.site, d.format, d.rank, d.method, d.bias) for d in self.decisions))


def parts(bought: list[Unit], by: str, size: float) -> list[PartialCut]:
    """Return the parts of a model: what is bought together for "site", all of a role or a block.

    Of each map the largest cut is taken that keeps at most ``size`` of its numbers; maps without
    one stay dense.
    """
    groups: dict[tuple[int | None, str, str], list[Decision]] = {}
    for unit, decisions in _cuts(bought, size):
        sites = unit.curve.sites
        # of all experts that are cut together one name will do
        alike = "+".join(dict.fromkeys(role_group(site.role) for site in sites))
        roles = sites[0].role if len(sites) == 1 else alike
        place = {
            "site": (sites[0].block, roles, sites[0].name),
            "role": (None, alike, ""),
            "block": (sites[0].block, f"{_prefix(sites[0].role)}all", ""),
        }[by]
        groups.setdefault(place, []).extend(decisions)
    return [PartialCut(*place, size, ALONE, tuple(found)) for place, found in groups.items()]


def cumulative(bought: list[Unit], size: float) -> list[PartialCut]:
    """Return parts that grow by a block each: from the first to the last, and the other way."""
    blocks = parts(bought, "block", size)
    grown = []
    for how, order in ((FORWARDS, blocks), (BACKWARDS, blocks[::-1])):
        held: tuple[Decision, ...] = ()
        for one in order:
            held += one.decisions
            grown.append(PartialCut(one.block, one.role, "", size, how, held))
    return grown


def _cuts(bought: list[Unit], size: float) -> Iterator[tuple[Unit, list[Decision]]]:
    for unit in bought:
        sizes = unit.curve.sizes
        fits = (sizes[:-1] <= size * float(sizes[-1]) * (1 + 1e-9)).nonzero()
        if len(fits):
            decisions = decided([unit], [int(fits[-1])])
            yield unit, [one for one in decisions if one.format != "dense"]


def _prefix(role: str) -> str:
    """Return what keeps the blocks of an encoder apart from those of a decoder."""
    return next((side for side in ("encoder_", "decoder_") if role.startswith(side)), "")


class Sensitivity:
    """Measures parts on a text; a part costs the blocks from the first that it cuts to the last.

    What was measured is kept in the cache line by line, by what was cut, so that interrupted work
    goes on and nothing is measured twice.

    Args:
        job: the model; its search split is not looked at.
        options: of the cuts.
        tokens: the text, [sequences, length].
        divergence: also measure the mean Kullback–Leibler divergence from the dense model, in nats
            per token, over at most ``COMPARED`` tokens spread evenly over the text.
    """

    def __init__(self, job: Job, options: Factorize, tokens: Tokens, divergence: bool) -> None:
        self.job, self.options, self.divergence = job, options, divergence
        self.walk = job.walk(tokens)
        self.places = job.each_block()
        self.record = Record(job.cache / "sensitivity" / f"{self._key(tokens)}.jsonl")

    @cached_property
    def dense(self) -> dict[str, float]:
        """Return what the dense model has: "loss", and of "divergence" none from itself.

        Raises:
            SpectrimError: its loss is no number.
        """
        loss = float(self._whole[0].mean())
        if not isfinite(loss):
            raise SpectrimError(
                f"the dense model's loss on the text is {loss}, so nothing can be measured beside "
                "it; expected a finite one: check the model's weights, or bring another text"
            )
        return {"loss": loss} | ({"divergence": 0.0} if self.divergence else {})

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor | None]:
        """Return what the dense model has for each token: losses, log-probabilities."""
        stream = self._through(Stream(self.walk), 0, ())
        return self._losses(stream), self._log_probabilities(stream)

    @property
    def compared(self) -> int:
        """Return of how many tokens the divergence is the mean."""
        return len(range(0, self.walk.predicted(), ceil(self.walk.predicted() / COMPARED)))

    def __call__(self, parts: list[PartialCut]) -> list[dict[str, float]]:
        """Return what each part has: "loss", maybe "divergence", and "error".

        error: the standard error of the mean by which the last of these differs from the dense
        model's, token by token on the same text. Neighbouring tokens are not independent, so that
        stretches of ``STRETCH`` of them, of short texts a ``STRETCHES``-th, count as one.
        """
        missing = {one.key: one for one in parts if one.key not in self.record.values}
        known = len({one.key for one in parts}) - len(missing)
        stream, at = Stream(self.walk), 0
        ordered = sorted(missing.items(), key=lambda pair: self._first(pair[1]))
        for done, (key, one) in enumerate(ordered, start=known + 1):
            while at < self._first(one):
                stream, at = self._pass(stream, at, ()), at + 1
            self.record.add(key, self._end(self._through(stream, at, one.decisions)))
            self.job.progress(done, known + len(missing), "measuring parts")
        return [self.record.values[one.key] for one in parts]

    def _key(self, tokens: Tokens) -> str:
        around = loss_key(self.job, self.options, tokens)
        return key_of("sensitivity", 2, around, self.divergence)

    def _first(self, part: PartialCut) -> int:
        """Return where the first block is that a part cuts."""
        return next(at for at, place in enumerate(self.places) if of_block(part.decisions, place))

    def _through(self, stream: Stream, at: int, decisions: tuple[Decision, ...]) -> Stream:
        for place in range(at, len(self.places)):
            stream = self._pass(stream, place, decisions)
        return stream

    def _pass(self, stream: Stream, at: int, decisions: tuple[Decision, ...]) -> Stream:
        """Return the states behind a block, cut as the decisions say."""
        place = self.places[at]
        block = self.walk.block(place)
        if of_block(decisions, place):
            block = try_out(self.job, self.options, place, block, decisions)
        return stream.reach(place).behind(block, place)

    def _end(self, stream: Stream) -> dict[str, float]:
        """Return what is measured behind the last block."""
        before, dense = self._whole
        losses = self._losses(stream)
        found, apart = {"loss": float(losses.mean())}, losses - before
        own = self._log_probabilities(stream)
        if dense is not None and own is not None:
            apart = (dense.exp() * (dense - own)).sum(1).double()
            found["divergence"] = float(apart.mean())
        return found | {"error": standard_error(apart)}

    def _losses(self, stream: Stream) -> Float[Tensor, " counted"]:
        return stream.losses().double()

    @torch.no_grad()
    def _log_probabilities(self, stream: Stream) -> Float[Tensor, "compared vocab"] | None:
        if not self.divergence:
            return None
        rows = torch.cat([
            one.reshape(-1, one.shape[-1])[self.walk.targets(at).reshape(-1) != -100]
            for at, one in stream.hidden.items()
        ])  # fmt: skip
        rows = rows[:: ceil(len(rows) / COMPARED)]
        chunks = (self.walk.logits(chunk).float() for chunk in rows.split(HEAD_CHUNK))
        return torch.cat([logits.log_softmax(1) for logits in chunks])


def standard_error(values: Float[Tensor, " tokens"]) -> float:
    """Return the standard error of the mean of values in the order of their text.

    Those of a stretch of consecutive tokens are averaged first (batch means; Flegal and Jones,
    2010, 0811.1729), as they are not independent.
    """
    count = min(len(values), max(STRETCHES, len(values) // STRETCH))
    means = torch.stack([one.mean() for one in values.tensor_split(count)])
    return float(means.std() / count**0.5) if count > 1 else inf
