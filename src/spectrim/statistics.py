"""What calibration says about a site: how its inputs and the loss's gradients are distributed.

Collected by two sweeps over the blocks (methods.md section 2). Forward: run block by block, keep
each block's input on disk. Reverse: recompute a block from its input, back-propagate the loss
through it, and add x xᵀ and g gᵀ of every site. Only one block and its graph are in memory at a time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.activations import Activations
from spectrim.architectures import Stack
from spectrim.run import atomic_file
from spectrim.sites import Site
from spectrim.walk import BlockWalk

Progress = Callable[[int, int, str], None]
BANDS = 4  # of a second moment: 5/8 of the full product is computed; more bands run less well


@dataclass
class Statistics:
    """Moments of one site over the calibration tokens; what no method asked for stays None.

    tokens: how many tokens reached the site (for an expert, those routed to it).
    input_moment: A = E[x xᵀ], [in, in] float32, not centred.
    gradient_moment: G = E[g gᵀ], [out, out] float32, g = ∂ℓ/∂y per token for the loss in nats summed
        over tokens; for an expert both means run over all tokens, those not routed to it counting 0.
    """

    tokens: int
    input_mean: Float[Tensor, " in"] | None = None
    input_moment: Float[Tensor, "in in"] | None = None
    output_mean: Float[Tensor, " out"] | None = None
    gradient_moment: Float[Tensor, "out out"] | None = None


@dataclass
class SecondMoment:
    """A running sum of outer products in float32; blocks below the diagonal are left out."""

    total: Tensor
    sum: Tensor
    tokens: int = 0

    @classmethod
    def zeros(cls, size: int) -> SecondMoment:
        """Return an empty sum for vectors of this size."""
        return cls(torch.zeros(size, size), torch.zeros(size))

    def add(self, rows: Float[Tensor, "tokens size"]) -> None:
        """Add Σ row rowᵀ and Σ row.

        Only blocks on and above the diagonal are computed. Products of bf16 rows are exact, so the
        processor may multiply in bf16 and add in float32, twice as fast and no less precise.
        """
        exact = rows.dtype == torch.bfloat16
        rows = rows.detach().float()
        size = rows.shape[1]
        edges = [size * part // BANDS for part in range(BANDS + 1)]
        with matmul_precision("medium" if exact else "highest"):
            for begin, end in itertools.pairwise(edges):
                self.total[begin:end, begin:] += rows[:, begin:end].T @ rows[:, begin:]
        self.sum += rows.sum(0)
        self.tokens += len(rows)

    def moment(self) -> Float[Tensor, "size size"]:
        """Return the symmetric sum."""
        return self.total.triu() + self.total.triu(1).T


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class _Collector:
    """Hooks on the sites of one block that add up their moments; shared inputs are added once."""

    mask: Tensor | None = None
    encoder: Tensor | None = None
    encoder_mask: Tensor | None = None
    inputs: dict[str, SecondMoment] = field(default_factory=dict)
    gradients: dict[str, SecondMoment] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    _seen: list[tuple[Tensor, str]] = field(default_factory=list)

    @contextmanager
    def watching(self, block: nn.Module, names: dict[str, str]) -> Iterator[None]:
        """Watch the modules ``names`` (path in the block -> site name) while the context lasts."""
        handles = [
            block.get_submodule(path).register_forward_hook(self._hook(name))
            for path, name in names.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def batch(
        self,
        mask: Bool[Tensor, "batch length"],
        encoder: Tensor | None,
        encoder_mask: Bool[Tensor, "batch other"],
    ) -> Iterator[None]:
        """Take one batch, the masks saying what is text; its tensors are let go at the end.

        encoder: what cross-attention reads in place of the block's own hidden states.
        """
        self.mask, self.encoder_mask = _flat(mask), _flat(encoder_mask)
        self.encoder = encoder
        try:
            yield
        finally:
            self._seen.clear()
            self.encoder = None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            mask = self.encoder_mask if x is self.encoder else self.mask
            leader = next((other for seen, other in self._seen if seen is x), None)
            if leader is None:
                self._seen.append((x, name))
                leader = name
                _add(self.inputs, name, _rows(x, mask, module))
            self.leader[name] = leader
            if output.requires_grad:
                output.register_hook(lambda g: _add(self.gradients, name, _rows(g, mask, module)))

        return hook


def _flat(mask: Bool[Tensor, "batch length"]) -> Bool[Tensor, " tokens"] | None:
    return None if bool(mask.all()) else mask.reshape(-1)


def _rows(value: Tensor, mask: Tensor | None, module: nn.Module) -> Float[Tensor, "tokens size"]:
    """Return the vectors of the tokens that are text."""
    rows = value.detach().reshape(-1, value.shape[-1])
    routed = getattr(module, "token_index", None)  # set by Experts: which tokens came here
    return rows if mask is None else rows[mask if routed is None else mask[routed]]


def _add(sums: dict[str, SecondMoment], name: str, rows: Float[Tensor, "tokens size"]) -> None:
    if len(rows) == 0:
        return
    if name not in sums:
        sums[name] = SecondMoment.zeros(rows.shape[-1])
    sums[name].add(rows)


def collect(walk: BlockWalk, folder: Path, sites: list[Site], progress: Progress) -> None:
    """Write the statistics of every block into ``folder``, continuing where an earlier run stopped.

    One file a block; ``done.json`` appears last. Work files go as they are used up.
    """
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sweep = _Sweep(walk, folder, sites, progress)
    sweep.forward()
    sweep.reverse()
    with atomic_file(folder / "done.json") as partial:
        partial.write_text(json.dumps({"tokens": walk.tokens.counted()}))
    sweep.clear()


class _Sweep:
    """The forward and the reverse sweep over one set of work files."""

    def __init__(
        self, walk: BlockWalk, folder: Path, sites: list[Site], progress: Progress
    ) -> None:
        self.walk = walk
        self.folder = folder
        self.sites = sites
        self.progress = progress
        self.stacks = walk.architecture.stacks
        self.total = 2 * sum(len(walk.blocks(stack)) for stack in self.stacks)

    def file(self, stack: Stack, index: int, kind: str) -> Activations:
        """Return the hidden states (or their gradients) that enter block ``index`` of a stack."""
        side = self.walk.side(stack)
        length = len(range(self.walk.tokens.ids.shape[1])[side])
        shape = (len(self.walk.tokens.ids), length, self.walk.hidden_size(stack))
        path = self.folder / f"{stack.path}.{index}.{kind}"
        return Activations(path, shape, self.walk.dtype)

    def encoder(self, stack: Stack) -> Activations | None:
        """Return the encoder's output where a stack attends to it."""
        if not self.walk.is_encoder_decoder or stack is self.stacks[0]:
            return None
        first = self.stacks[0]
        return self.file(first, len(self.walk.blocks(first)), "encoded")

    def forward(self) -> None:
        """Run all blocks, keeping every block's input."""
        done = 0
        for stack in self.stacks:
            encoder = self.encoder(stack)
            self._enter(stack, encoder)
            for index in range(len(self.walk.blocks(stack))):
                self._forward_block(stack, index, encoder)
                done += 1
                self.progress(done, self.total, "forward sweep")
            if self.walk.is_encoder_decoder and stack is self.stacks[0]:
                self._encode(stack)

    def _read(self, file: Activations | None, start: int) -> Tensor | None:
        return None if file is None else file.read(start, self.walk.batch)

    def _enter(self, stack: Stack, encoder: Activations | None) -> None:
        entering = self.file(stack, 0, "input")
        for start in self.walk.starts:
            entering.write(start, self.walk.start(stack, start, self._read(encoder, start)))
        entering.finish()

    def _forward_block(self, stack: Stack, index: int, encoder: Activations | None) -> None:
        entering, leaving = self.file(stack, index, "input"), self.file(stack, index + 1, "input")
        if leaving.exists() or statistics_file(self.folder, stack, index).exists():
            return
        block = self.walk.block(stack, index)
        for start in self.walk.starts:
            with torch.no_grad():
                hidden = entering.read(start, self.walk.batch)
                outside = self._read(encoder, start)
                leaving.write(start, self.walk.run(block, stack, index, start, hidden, outside))
        leaving.finish()

    def _encode(self, stack: Stack) -> None:
        last = self.file(stack, len(self.walk.blocks(stack)), "input")
        encoded = self.encoder(self.stacks[1])
        assert encoded is not None
        if encoded.exists():
            return
        for start in self.walk.starts:
            with torch.no_grad():
                encoded.write(start, self.walk.encoded(last.read(start, self.walk.batch), start))
        encoded.finish()

    def reverse(self) -> None:
        """Back-propagate the loss block by block, adding up both moments of every site."""
        done = self.total // 2
        self._loss_gradient(self.stacks[-1])
        for stack in reversed(self.stacks):
            if self.walk.is_encoder_decoder and stack is self.stacks[0]:
                self._encoder_gradient(stack)
            for index in reversed(range(len(self.walk.blocks(stack)))):
                self._reverse_block(stack, index)
                done += 1
                self.progress(done, self.total, "reverse sweep")

    def _loss_gradient(self, stack: Stack) -> None:
        count = len(self.walk.blocks(stack))
        leaving, gradient = self.file(stack, count, "input"), self.file(stack, count, "gradient")
        if gradient.exists() or statistics_file(self.folder, stack, count - 1).exists():
            return
        nats = 0.0
        for start in self.walk.starts:
            piece, loss = self.walk.loss_gradient(leaving.read(start, self.walk.batch), start)
            gradient.write(start, piece)
            nats += loss
        gradient.finish()

    def _encoder_gradient(self, stack: Stack) -> None:
        """Carry the gradient of the encoder's output back through its final norm."""
        count = len(self.walk.blocks(stack))
        leaving, gradient = self.file(stack, count, "input"), self.file(stack, count, "gradient")
        if gradient.exists() or statistics_file(self.folder, stack, count - 1).exists():
            return
        outside = self.file(stack, 0, "encoded.gradient")
        for start in self.walk.starts:
            hidden = leaving.read(start, self.walk.batch).requires_grad_()
            with torch.enable_grad():
                encoded = self.walk.encoded(hidden, start)
            flow = outside.read(start, self.walk.batch)
            gradient.write(start, torch.autograd.grad(encoded, hidden, flow)[0])
        gradient.finish()

    def _reverse_block(self, stack: Stack, index: int) -> None:
        target = statistics_file(self.folder, stack, index)
        behind = self.file(stack, index + 1, "gradient")
        if not target.exists():
            collector = _Collector()
            block = self.walk.block(stack, index)
            prefix = f"{stack.path}.{index}."
            names = [site.name for site in self.sites if site.name.startswith(prefix)]
            with collector.watching(block, {name.removeprefix(prefix): name for name in names}):
                self._backward(stack, index, block, collector)
            _save(target, collector, names, self.walk.predicted())
        behind.remove()
        self.file(stack, index + 1, "input").remove()
        self.file(stack, index + 1, "encoded.gradient").remove()

    def _backward(
        self, stack: Stack, index: int, block: nn.Module, collector: _Collector
    ) -> None:
        entering, behind = self.file(stack, index, "input"), self.file(stack, index + 1, "gradient")
        before = self.file(stack, index, "gradient")
        encoder = self.encoder(stack)
        first = self.stacks[0]
        outside_before = self.file(first, index, "encoded.gradient")
        outside_behind = self.file(first, index + 1, "encoded.gradient")
        for start in self.walk.starts:
            hidden = entering.read(start, self.walk.batch).requires_grad_()
            outside = self._read(encoder, start)
            sources = [hidden] if outside is None else [hidden, outside.requires_grad_()]
            flow = behind.read(start, self.walk.batch)
            masks = [self.walk.stack_mask(part, start) for part in (stack, first)]
            with collector.batch(masks[0], outside, masks[1]), torch.enable_grad():
                leaving = self.walk.run(block, stack, index, start, hidden, outside)
                gradients = torch.autograd.grad(leaving, sources, flow, allow_unused=True)
            before.write(start, _or_zeros(gradients[0], hidden))
            if outside is not None:
                later = self._read(outside_behind, start) if outside_behind.exists() else 0
                outside_before.write(start, _or_zeros(gradients[1], outside) + later)
        before.finish()
        if encoder is not None:
            outside_before.finish()

    def clear(self) -> None:
        """Remove all work files."""
        for stack in self.stacks:
            for pattern in ("input", "gradient", "encoded", "encoded.gradient"):
                for path in self.folder.glob(f"{stack.path}.*.{pattern}*"):
                    path.unlink()


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def statistics_file(folder: Path, stack: Stack, index: int) -> Path:
    """Return where the statistics of one block lie."""
    return folder / f"{stack.path}.{index}.safetensors"


def _save(path: Path, collector: _Collector, names: list[str], predicted: int) -> None:
    """Write the moments of one block; an input shared by several sites is written once."""
    tensors: dict[str, Tensor] = {}
    about: dict[str, dict[str, Any]] = {}
    for name in names:
        leader = collector.leader.get(name)
        if leader is None:
            about[name] = {"tokens": 0}
            continue
        tokens = collector.inputs[leader].tokens
        about[name] = {"tokens": tokens, "input": leader}
        if leader == name:
            tensors[f"{name}.input_moment"] = collector.inputs[name].moment() / max(tokens, 1)
            tensors[f"{name}.input_mean"] = collector.inputs[name].sum / max(tokens, 1)
        if name in collector.gradients:
            tensors[f"{name}.gradient_moment"] = collector.gradients[name].moment() / predicted
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata={"sites": json.dumps(about)})


def load_block(folder: Path, stack: Stack, index: int) -> dict[str, Statistics]:
    """Return the statistics of every site of one block; sites with one input share its moment."""
    path = statistics_file(folder, stack, index)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["sites"])
    return {
        name: Statistics(
            tokens=facts["tokens"],
            input_mean=tensors.get(f"{facts.get('input')}.input_mean"),
            input_moment=tensors.get(f"{facts.get('input')}.input_moment"),
            gradient_moment=tensors.get(f"{name}.gradient_moment"),
        )
        for name, facts in about.items()
    }
