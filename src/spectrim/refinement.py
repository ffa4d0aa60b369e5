"""Sequential refinement: solve the second factor again on what the smaller model really delivers.

Behind cut blocks a site receives x' where the dense model delivers x. With the left factor U kept,
the right one is solved anew for min E‖G^½ (W x - U V x')‖² (methods.md section 4).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spectrim.architectures import Stack
from spectrim.calibration import Tokens
from spectrim.formats import FactoredLinear
from spectrim.job import Job
from spectrim.methods import damped_root
from spectrim.sites import weight
from spectrim.statistics import Statistics, load_block, matmul_precision
from spectrim.walk import BlockWalk

SEQUENCES = 12  # of the calibration text; more cost time and change little
PRIOR = 0.1  # how much the moments of the whole calibration text count beside those of x'
SHIFT = 1.0  # 1 regresses on W x, 0 on W x'; in between, both count
DAMPING = 1e-2
PHASES: tuple[tuple[str, ...], ...] = (("all",),)


@dataclass
class _Streams:
    """The same tokens behind the dense and behind the smaller blocks, batch by batch."""

    dense: dict[int, Tensor] = field(default_factory=dict)
    small: dict[int, Tensor] = field(default_factory=dict)
    dense_encoded: dict[int, Tensor] = field(default_factory=dict)
    small_encoded: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _Crossed:
    """Moments of one input of a block: own = Σ x' x'ᵀ and across = Σ x x'ᵀ."""

    own: Tensor
    across: Tensor
    tokens: int = 0


def refine(job: Job, *, always: bool) -> None:
    """Write refined blocks beside the cut ones; keep them if they lower the loss on the search split.

    always: keep them in any case. ``job.notes["refinement"]`` says what was measured.
    """
    assert job.blocks is not None
    refined = job.work / "refined"
    _refine_blocks(job, job.blocks, refined)
    before = search_loss(job, job.blocks)
    after = search_loss(job, refined)
    used = always or after < before
    job.notes["refinement"] = {
        "used": used,
        "search_loss_before": before,
        "search_loss_after": after,
    }
    if used:
        job.blocks = refined


def search_loss(job: Job, folder: Path) -> float:
    """Return the loss of the model made of a folder's blocks on the search split, nats per token."""
    walk = job.walk(job.splits.search)
    losses = walk.sweep(lambda stack, index: job.stored_block(folder, stack, index, walk.dtype))
    return float(losses.double().mean())


def _refine_blocks(job: Job, cut: Path, refined: Path) -> None:
    calibration = job.splits.calibration
    tokens = Tokens(calibration.ids[:SEQUENCES], calibration.mask[:SEQUENCES])
    walk = job.walk(tokens)
    streams = _Streams()
    blocks = job.each_block()
    for done, (stack, index) in enumerate(blocks, start=1):
        if index == 0:
            _enter(walk, stack, streams)
        _refine_block(job, walk, streams, (stack, index), (cut, refined))
        job.progress(done, len(blocks), "refining")


def _enter(walk: BlockWalk, stack: Stack, streams: _Streams) -> None:
    if streams.dense and walk.is_encoder_decoder:
        streams.dense_encoded = {at: walk.encoded(h, at) for at, h in streams.dense.items()}
        streams.small_encoded = {at: walk.encoded(h, at) for at, h in streams.small.items()}
    streams.dense = {at: walk.start(stack, at, streams.dense_encoded.get(at)) for at in walk.starts}
    streams.small = dict(streams.dense)


def _refine_block(
    job: Job,
    walk: BlockWalk,
    streams: _Streams,
    place: tuple[Stack, int],
    folders: tuple[Path, Path],
) -> None:
    stack, index = place
    cut, refined = folders
    dense = walk.block(stack, index)
    small = job.stored_block(cut, stack, index, walk.dtype)
    prefix = f"{stack.path}.{index}."
    factored = {
        name: module
        for name, module in small.named_modules()
        if isinstance(module, FactoredLinear) and not hasattr(module, "token_index")
    }
    if factored and not job.block_file(refined, stack, index).exists():
        known = load_block(job.statistics(), stack, index)
        for phase in _phases(list(factored)):
            moments = _measure(walk, streams, place, (dense, small), phase)
            for name in phase:
                matrix = weight(dense.get_submodule(name)).detach()
                _solve(factored[name], matrix, known[prefix + name], moments[name])
    if not job.block_file(refined, stack, index).exists():
        modules = {prefix + n: m for n, m in small.named_modules() if isinstance(m, FactoredLinear)}
        job.write_block(refined, stack, index, modules)
    small = job.stored_block(refined, stack, index, walk.dtype)
    with torch.no_grad():
        for at in walk.starts:
            outside = streams.dense_encoded.get(at), streams.small_encoded.get(at)
            streams.dense[at] = walk.run(dense, stack, index, at, streams.dense[at], outside[0])
            streams.small[at] = walk.run(small, stack, index, at, streams.small[at], outside[1])


def _phases(names: list[str]) -> list[list[str]]:
    return [names]


def _measure(
    walk: BlockWalk,
    streams: _Streams,
    place: tuple[Stack, int],
    blocks: tuple[nn.Module, nn.Module],
    names: list[str],
) -> dict[str, _Crossed]:
    """Return the moments of the inputs of the named modules; a shared input is measured once."""
    stack, index = place
    moments: dict[str, _Crossed] = {}
    seen: dict[str, Tensor] = {}
    leaders: dict[str, str] = {}
    with _catching(blocks[0], names) as dense_inputs, _catching(blocks[1], names) as small_inputs:
        for at in walk.starts:
            with torch.no_grad():
                outside = streams.dense_encoded.get(at), streams.small_encoded.get(at)
                walk.run(blocks[0], stack, index, at, streams.dense[at], outside[0])
                walk.run(blocks[1], stack, index, at, streams.small[at], outside[1])
            seen.clear()
            for name in names:
                x = small_inputs[name]
                leaders[name] = next((other for other, y in seen.items() if y is x), name)
                if leaders[name] == name:
                    seen[name] = x
                    part = walk.architecture.stacks[0] if x is outside[1] else stack
                    mask = walk.stack_mask(part, at).reshape(-1)
                    _add(moments, name, dense_inputs[name], x, mask)
    return {name: moments[leaders[name]] for name in names}


def _add(
    moments: dict[str, _Crossed], name: str, dense: Tensor, small: Tensor, mask: Tensor
) -> None:
    exact = small.dtype == torch.bfloat16
    x = dense.reshape(-1, dense.shape[-1])[mask].float()
    y = small.reshape(-1, small.shape[-1])[mask].float()
    with matmul_precision("medium" if exact else "highest"):
        own, across = y.T @ y, x.T @ y
    if name not in moments:
        moments[name] = _Crossed(own, across, len(y))
    else:
        moments[name].own += own
        moments[name].across += across
        moments[name].tokens += len(y)


@contextmanager
def _catching(block: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Keep the last input of each named module while the context lasts."""
    caught: dict[str, Tensor] = {}

    def catch(name: str) -> object:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            caught[name] = args[0]

        return block.get_submodule(name).register_forward_pre_hook(hook)

    handles = [catch(name) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def _solve(
    module: FactoredLinear,
    matrix: Float[Tensor, "out in"],
    statistics: Statistics,
    moments: _Crossed,
) -> None:
    """Replace the right factor by (UᵀGU)⁻¹UᵀG W M̃ (A')⁻¹, drawn towards the one it has.

    The present factor, which is best for x' = x over the whole calibration text, stands for PRIOR
    times the calibration moments; so few tokens cannot carry the solution away.
    """
    assert statistics.input_moment is not None
    left, right = module.left().detach().double(), module.right().detach().double()
    target = _projection(left, statistics) @ matrix.double()  # [rank, in]
    own = moments.own.double() / moments.tokens
    across = moments.across.double() / moments.tokens
    wanted = SHIFT * across + (1 - SHIFT) * own
    moment = statistics.input_moment.double()
    prior = PRIOR * (moment + DAMPING * moment.diagonal().mean() * torch.eye(len(moment)))
    root = torch.linalg.cholesky(own + prior)
    right = torch.cholesky_solve((target @ wanted + right @ prior).T, root).T
    module.right().data.copy_(right)


def _projection(left: Float[Tensor, "out rank"], statistics: Statistics) -> Tensor:
    """Return (UᵀGU)⁻¹ UᵀG, by least squares in the gradient's metric."""
    if statistics.gradient_moment is None:
        return torch.linalg.pinv(left)
    root = damped_root(statistics.gradient_moment, DAMPING)
    return torch.linalg.lstsq(root.T @ left, root.T).solution
