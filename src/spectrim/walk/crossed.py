"""What the blocks made so far deliver where the dense ones delivered something else.

Two streams of the same tokens run side by side, and each input of a block is compared in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.model.architectures import Place
from spectrim.walk.moments import matmul_precision
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk

LEAST = 1e-3  # of the mean square of all tokens: what a token of smaller ones counts as


@dataclass
class Streams:
    """The same tokens behind the dense and behind the smaller blocks."""

    dense: Stream
    small: Stream


@dataclass
class Crossed:
    """Moments of one input of a block: own = Σ x' x'ᵀ and across = Σ x x'ᵀ.

    Every token counts alike: x and x' are divided by the root mean square of x, as a few tokens of
    huge activations (Sun et al., 2402.17762) would else be all that is seen.
    """

    own: Tensor
    across: Tensor
    tokens: int = 0


@dataclass
class Wanted:
    """What the dense block feeds its sites: inputs by leader and batch, sites by shared input."""

    inputs: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)


def wanted_inputs(
    walk: BlockWalk, streams: Streams, place: Place, dense: nn.Module, names: list[str]
) -> Wanted:
    """Run the dense block, carry its stream on, and return what its sites received."""
    wanted, behind = Wanted(), {}
    for at in walk.starts:
        with catching(dense, names) as caught, torch.no_grad():
            behind[at] = streams.dense.run(dense, place, at)
        leaders: list[str] = []
        for name, x in caught.items():  # in the order in which the sites ran
            leader = next((other for other in leaders if caught[other] is x), name)
            if leader == name:
                leaders.append(name)
                wanted.inputs.setdefault(name, {})[at] = x
            if name not in (group := wanted.groups.setdefault(leader, [])):
                group.append(name)
    streams.dense = streams.dense.with_hidden(behind)
    return wanted


def crossed(
    walk: BlockWalk,
    streams: Streams,
    place: Place,
    small: nn.Module,
    wanted: dict[int, Tensor],
    group: list[str],
) -> Crossed:
    """Return the moments of the input that a group of sites shares in the smaller model."""
    moments: Crossed | None = None
    for at in walk.starts:
        with catching(small, group, stop=True) as caught, torch.no_grad(), suppress(_Reached):
            streams.small.run(small, place, at)
        x = caught[group[0]]
        part = walk.architecture.stacks[0] if x is streams.small.encoded.get(at) else place.stack
        moments = _add(moments, wanted[at], x, walk.stack_mask(part, at).reshape(-1))
    assert moments is not None
    return moments


def _add(moments: Crossed | None, dense: Tensor, small: Tensor, mask: Tensor) -> Crossed:
    exact = small.dtype == torch.bfloat16
    x = dense.reshape(-1, dense.shape[-1])[mask].float()
    y = small.reshape(-1, small.shape[-1])[mask].float()
    squares = x.square().mean(-1, keepdim=True)
    size = (squares + LEAST * squares.mean()).clamp_min(torch.finfo(x.dtype).tiny).rsqrt()
    x, y = x * size, y * size
    with matmul_precision("medium" if exact else "highest"):
        own, across = y.T @ y, x.T @ y
    if moments is None:
        return Crossed(own, across, len(y))
    return Crossed(moments.own + own, moments.across + across, moments.tokens + len(y))


class _Reached(Exception):  # noqa: N818 (not an error)
    """The block has run as far as was needed."""


@contextmanager
def catching(
    block: nn.Module, names: list[str], *, stop: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Keep the input of each named module while the context lasts; ``stop`` at the first one."""
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught[name] = args[0]
            if stop:
                raise _Reached

        return block.get_submodule(name).register_forward_pre_hook(hook)

    handles = [catch(name) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()
