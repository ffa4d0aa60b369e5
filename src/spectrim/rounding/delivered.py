"""What a map is rounded for: the inputs that rounded blocks deliver, and the dense outputs.

Rounding each block for the dense model's inputs adds the errors of all blocks up. Here the blocks
are walked in order, and of every input the moments E[x' x'ᵀ] and E[x x'ᵀ] are taken, x' behind what
is rounded already and x in the dense model. GPTQ then rounds for x', and a map W is replaced by the
one that turns x' into W x (GPTAQ, 2504.02692), in part, as few tokens say little about it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.formats.fewer_outputs import FewerOutputs
from spectrim.job.blocks import current_block
from spectrim.job.dense_forms import dense_form, linear_of, matrix_of
from spectrim.job.job import Job
from spectrim.job.loss import walk_now
from spectrim.model import sites
from spectrim.model.architectures import Place
from spectrim.plan import Plan
from spectrim.rounding.few_bits import Target
from spectrim.text.tokens import Tokens
from spectrim.walk.crossed import Crossed, Streams, Wanted, crossed, wanted_inputs
from spectrim.walk.moments import cholesky, damped
from spectrim.walk.statistics import Statistics
from spectrim.walk.stream import Stream

SEQUENCES = 16  # of the calibration text; more cost time and change little
PRIOR = 1.0  # how much the moments of the whole calibration text count beside those of x'
SHIFT = 0.5  # 1 aims at W x, 0 at W x'; the full shift chases noise (GPTAQ too takes a part)
DAMPING = 1e-2  # of the mean diagonal, before a map is solved for


class Delivered:
    """The walk through dense and rounded blocks; one block's inputs are in memory at a time."""

    def __init__(self, job: Job, plan: Plan, folder: Path, *, trained: bool = False) -> None:
        """Stand in front of the first block; plan: of the rounded blocks that ``folder`` gets.

        trained: blocks have learnt from what the rounded ones in front of them deliver, so what is
        wanted of each is what it makes of that.
        """
        calibration = job.splits.calibration
        tokens = Tokens(calibration.ids[:SEQUENCES], calibration.mask[:SEQUENCES])
        self.job = job
        self.plan = plan
        self.rounded = replace(job, plan=plan, blocks=folder)
        self.walk = walk_now(job, tokens)
        self.streams = Streams(Stream(self.walk), Stream(self.walk))
        self.parted = False
        self.trained = trained

    def enter(self, place: Place) -> None:
        """Stand in front of a block; the one before it is rounded."""
        if self.trained:
            self.streams.dense = self.streams.small
        self.streams.dense = self.streams.dense.reach(place)
        self.streams.small = self.streams.small.reach(place)

    def block(self, place: Place, names: list[str]) -> DeliveredBlock:
        """Return a block to be rounded, of which the maps of these names are; dense goes on."""
        dense = self._wanted_block(place)
        wanted = wanted_inputs(self.walk, self.streams, place, dense, names)
        return DeliveredBlock(self, place, dense, wanted)

    def skip(self, place: Place) -> None:
        """Carry the dense stream through a block of which nothing is rounded any more."""
        self.streams.dense = self.streams.dense.behind(self._wanted_block(place), place)

    def leave(self, place: Place) -> None:
        """Carry the rounded stream through a block that is written."""
        changed = any(self.plan[one.name].replaced for one in self.job.block_sites(place))
        self.parted |= changed or self.job.blocks is not None
        if not self.parted:  # as yet both are the same
            self.streams.small = self.streams.dense
            return
        block = current_block(self.rounded, place, self.walk.dtype)
        self.streams.small = self.streams.small.behind(dense_form(block), place)

    def _wanted_block(self, place: Place) -> nn.Module:
        """Return the block whose outputs are wanted: the dense one, where none was trained."""
        if any(self.job.healings):
            return dense_form(current_block(self.job, place, self.walk.dtype))
        return self.walk.block(place)


class DeliveredBlock:
    """A block that is rounded map by map, each for what those before it deliver."""

    def __init__(self, walked: Delivered, place: Place, dense: nn.Module, wanted: Wanted) -> None:
        self.walked, self.place, self.dense, self.wanted = walked, place, dense, wanted
        self.small = dense_form(current_block(walked.job, place, walked.walk.dtype))
        self.leader = {name: one for one, group in wanted.groups.items() for name in group}
        self._inputs: dict[str, _Input] = {}

    def target(self, name: str, module: nn.Module, known: Statistics) -> Target | None:
        """Return what a map is rounded for, None where its inputs are not those of the walk.

        known: of the inputs and outputs that the map has kept.
        """
        if name not in self.leader or known.input_moment is None or known.loss_inputs is None:
            return None
        found = self._input(self.leader[name], known.input_moment)
        aim = aimed(matrix_of(module), self._wanted_matrix(name, module), found.moments, found.root)
        if known.loss_inputs is known.input_moment:
            return Target(found.own, aim, known.gradient_moment)
        inputs = _mixed(found.moments, known.loss_inputs)
        return Target(inputs, aim, known.gradient_moment)

    def put(self, name: str, made: nn.Module) -> None:
        """Go on with a map rounded."""
        sites.replace(self.small, name, linear_of(made, self.walked.walk.dtype))

    def _input(self, leader: str, prior: Float[Tensor, "in in"]) -> _Input:
        """Return what is known of an input, found out once for all its readers.

        prior: its moment in the whole text; one that is narrowed is another input.
        """
        found = self._inputs.get(leader)
        if found is None or found.prior is not prior:
            moments = self._crossed(leader) if found is None else found.moments
            own = _mixed(moments, prior)
            found = _Input(moments, prior, own, cholesky(damped(own, DAMPING)))
            self._inputs[leader] = found
        return found

    def _crossed(self, leader: str) -> Crossed:
        walked, group = self.walked, self.wanted.groups[leader]
        given = self.wanted.inputs.pop(leader)
        return crossed(walked.walk, walked.streams, self.place, self.small, given, group)

    def _wanted_matrix(self, name: str, module: nn.Module) -> Float[Tensor, "out in"]:
        """Return what is wanted of the dense inputs; of fewer outputs, what stands for them."""
        if isinstance(module, FewerOutputs):
            return matrix_of(module)
        return matrix_of(self.dense.get_submodule(name))


@dataclass(frozen=True)
class _Input:
    """An input of a block: its moments in both streams, in the whole text, and what comes of it."""

    moments: Crossed
    prior: Tensor
    own: Tensor
    """E[x' x'ᵀ], the prior in it."""
    root: Tensor
    """The lower Cholesky factor of that, damped."""


def _mixed(moments: Crossed, prior: Float[Tensor, "in in"]) -> Float[Tensor, "in in"]:
    """Return E[x' x'ᵀ] with the moment of the whole text, brought to its size, beside it.

    That may weigh tokens by how much the loss feels them, which x' of few tokens does not.
    """
    delivered = moments.own / moments.tokens
    size = delivered.diagonal().mean() / prior.diagonal().mean().clamp_min(1e-30)
    return (delivered + PRIOR * size * prior) / (1 + PRIOR)


def aimed(
    matrix: Float[Tensor, "out in"],
    wanted: Float[Tensor, "out dense_in"],
    moments: Crossed,
    root: Float[Tensor, "in in"],
) -> Float[Tensor, "out in"]:
    """Return a matrix moved by SHIFT of the way to the one that turns x' into what W makes of x.

    wanted: W, of the inputs x of the dense model, of which there may be more. root: the lower
    Cholesky factor of E[x' x'ᵀ], damped.
    """
    delivered = matrix.double() @ moments.own.double()
    missed = (wanted.double() @ moments.across.double() - delivered) / moments.tokens
    moved = torch.cholesky_solve(missed.T, root).T
    return (matrix.double() + SHIFT * moved).to(matrix.dtype)
