"""What a choice of cuts really costs: the loss on the search split, measured and counted."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import inf, isfinite

import torch
import transformers

from spectrim.allocators import allocators
from spectrim.curve import Curve
from spectrim.cutting.allocation import Unit, allocate, decided, units
from spectrim.cutting.cut import of_block, try_out
from spectrim.cutting.mixture import mixed, present
from spectrim.files import Record, key_of
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.plan import Decision, Plan
from spectrim.recipe.options import Factorize
from spectrim.text.tokens import Tokens
from spectrim.version import __version__
from spectrim.walk.stream import Stream

UNREPORTED = ("global", "uniform")  # the default and its baseline, which are to cost nothing


def planned(job: Job, options: Factorize, curves: list[Curve]) -> Plan:
    """Return the plan of the allocator, noting what it cost and what it gained over `global`.

    The gain is on the search split, which is the split that allocators which measure choose on.
    Where several methods offer cuts, their curves are brought to one scale, which is noted as well.

    Raises:
        SpectrimError: what cannot be factored, or the smallest cuts, already exceed the budget.
    """
    bought = units(job, curves)
    trial = Trial(job, options, bought)
    if len(present(curves)) > 1 and not options.bits:  # whose cost no trial of cuts shows
        plan, note = mixed(job, options, curves, trial.loss)
        if note:
            job.notes["mixture"] = {"evaluations": len(trial.losses), **note}
    else:
        plan = allocate(job, options, bought, trial)
    if options.allocator not in UNREPORTED and not options.bits:
        evaluations = len(trial.losses)
        size = plan.about["budget"]["size"]
        choice = allocators.get("global")([unit.curve for unit in bought], size)
        job.notes["allocation"] = {
            "allocator": options.allocator,
            "evaluations": evaluations,
            "search_loss": trial.loss(plan.decisions),
            "search_loss_of_global": trial(choice),
        }
    return plan


class Trial:
    """Measures choices of cuts for allocators that look at the true loss.

    losses: what was asked for so far, in nats per token, by a hash of the decisions, which are
    many; nothing is measured twice, nor again by a run that goes on with what another left.

    A choice is run from the first block on in which it differs from the one measured before, so the
    hidden states in front of every block stay in memory: [tokens, hidden] each, in the walk's
    dtype. The search split is short.
    """

    def __init__(self, job: Job, options: Factorize, bought: list[Unit]) -> None:
        self.job = job
        self.options = options
        self.bought = bought
        self.losses: dict[str, float] = {}
        self._walk = job.walk(job.splits.search)
        self._last: list[tuple[Decision, ...]] = []  # of every block, as measured last
        self._streams: list[Stream] = []  # in front of every block, and behind the last

    def __call__(self, chosen: list[int]) -> float:
        """Return the loss on the search split with these cuts, nats per token."""
        return self.loss(decided(self.bought, chosen))

    def loss(self, decisions: tuple[Decision, ...]) -> float:
        """Return the loss on the search split that decisions would lead to, nats per token.

        It is infinite where the model breaks down and computes none.
        """
        # what was predicted of a cut does not change what it costs
        decisions = tuple(replace(one, predicted_loss=0.0) for one in decisions)
        key = key_of(decisions)
        if key not in self.losses:
            if key not in self._record.values:
                self._record.add(key, {"loss": self._measured(decisions)})
            self.losses[key] = self._record.values[key]["loss"]
            self.job.progress(len(self.losses), 0, "measuring choices")
        return self.losses[key]

    @cached_property
    def _record(self) -> Record:
        """Return the file of what was measured, in the work folder, which ends with the run."""
        key = loss_key(self.job, self.options, self._walk.tokens)
        return Record(self.job.work / f"trial-{key}.jsonl")

    def _measured(self, decisions: tuple[Decision, ...]) -> float:
        places = self.job.each_block()
        wanted = [of_block(decisions, place) for place in places]
        differs = [one != other for one, other in zip(wanted, self._last, strict=False)]
        first = differs.index(True) if True in differs else len(differs)
        self._last = []  # until all is run, so that nothing half-done is gone on from
        behind = self._run(places, wanted, first)
        self._last = wanted
        mean = behind.mean()
        return mean if isfinite(mean) else inf  # so that comparisons hold

    def _run(self, places: list[Place], wanted: list[tuple[Decision, ...]], first: int) -> Stream:
        """Return the hidden states behind the last block, keeping those in front of every one."""
        del self._streams[first + 1 :]
        stream = self._streams[first] if self._streams else Stream(self._walk)
        for at, place in list(enumerate(places))[first:]:
            if at == len(self._streams):
                stream = stream.reach(place)
                self._streams.append(stream)
            dense = self._walk.block(place)
            block = try_out(self.job, self.options, place, dense, wanted[at])
            stream = stream.behind(block, place)
        if len(self._streams) == len(places):
            self._streams.append(stream)
        return stream


def loss_key(job: Job, options: Factorize, tokens: Tokens) -> str:
    """Return a name for all that a measured loss depends on but what is cut."""
    around = (__version__, torch.__version__, transformers.__version__, torch.get_num_threads())
    return key_of(job.statistics_key, tokens.digest(), options.model_dump(mode="json"), around)
