"""The two sweeps over the blocks that collect the statistics.

Forward: run block by block, keep each block's input on disk. Reverse: recompute a block from its
input, back-propagate the loss through it, and add x xᵀ and g gᵀ of every site. One block and its
graph are in memory at a time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.files import atomic_file
from spectrim.model.architectures import Place, Stack
from spectrim.model.sites import Site
from spectrim.progress import Progress
from spectrim.walk.activations import Activations
from spectrim.walk.collector import Collector, Read
from spectrim.walk.moments import SecondMoment
from spectrim.walk.statistics import embedding_file, statistics_file
from spectrim.walk.walk import BlockWalk
from spectrim.walk.writing import write


def collect(walk: BlockWalk, folder: Path, sites: list[Site], progress: Progress) -> None:
    """Write the statistics of every block into ``folder``, continuing where an earlier run stopped.

    One file a block; ``done.json`` appears last. Work files go as they are used up.
    """
    if (folder / "done.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    sweep = Sweep(walk, folder, sites, progress)
    try:
        if not sweep.complete():
            sweep.forward()
            sweep.reverse()
        sweep.embedded()
    except SpectrimError:  # the model's fault: nothing of it is of use
        shutil.rmtree(folder)
        raise
    except OSError:  # a full disk, say: what is complete is continued from
        for half in folder.glob("*.partial"):
            half.unlink()
        raise
    sweep.clear()
    with atomic_file(folder / "done.json") as partial:
        partial.write_text(json.dumps({"tokens": walk.tokens.counted()}))


class Sweep:
    """The forward and the reverse sweep over one set of work files.

    What is collected of a block may be replaced; its file is what says that the block is done.
    """

    def __init__(
        self, walk: BlockWalk, folder: Path, sites: list[Site], progress: Progress
    ) -> None:
        self.walk = walk
        self.folder = folder
        self.sites = sites
        self.progress = progress
        self.stacks = walk.architecture.stacks
        self.total = 2 * sum(len(walk.blocks(stack)) for stack in self.stacks)

    def complete(self) -> bool:
        """Return whether the statistics of every block are there."""
        return all(
            statistics_file(self.folder, place).exists()
            for stack in self.stacks
            for place in self.walk.places(stack)
        )

    def file(self, place: Place, kind: str) -> Activations:
        """Return the hidden states (or their gradients) that enter a block."""
        stack = place.stack
        side = self.walk.side(stack)
        length = len(range(self.walk.tokens.ids.shape[1])[side])
        shape = (len(self.walk.tokens.ids), length, self.walk.hidden_size(stack))
        path = self.folder / f"{place.name}.{kind}"
        return Activations(path, shape, self.walk.dtype)

    def encoder(self, stack: Stack) -> Activations | None:
        """Return the encoder's output where a stack attends to it."""
        if not self.walk.is_encoder_decoder or stack is self.stacks[0]:
            return None
        first = self.stacks[0]
        return self.file(self._end(first), "encoded")

    def _end(self, stack: Stack) -> Place:
        """Return the place behind the last block of a stack."""
        return Place(stack, len(self.walk.blocks(stack)))

    def forward(self) -> None:
        """Run all blocks, keeping every block's input."""
        done = 0
        for stack in self.stacks:
            encoder = self.encoder(stack)
            self._enter(stack, encoder)
            for place in self.walk.places(stack):
                self._forward_block(place, encoder)
                done += 1
                self.progress(done, self.total, "forward sweep")
            if self.walk.is_encoder_decoder and stack is self.stacks[0]:
                self._encode(stack)

    def _read(self, file: Activations | None, start: int) -> Tensor | None:
        return None if file is None else file.read(start, self.walk.batch)

    def _enter(self, stack: Stack, encoder: Activations | None) -> None:
        entering = self.file(Place(stack, 0), "input")
        for start in self.walk.starts:
            entering.write(start, self.walk.enter(stack, start, self._read(encoder, start)))
        entering.finish()

    def _forward_block(self, place: Place, encoder: Activations | None) -> None:
        entering, leaving = self.file(place, "input"), self.file(place.following, "input")
        if leaving.exists() or statistics_file(self.folder, place).exists():
            return
        block = self.walk.block(place)
        for start in self.walk.starts:
            with torch.no_grad():
                hidden = entering.read(start, self.walk.batch)
                outside = self._read(encoder, start)
                leaving.write(start, self.walk.run(block, place, start, hidden, outside))
        leaving.finish()

    def _encode(self, stack: Stack) -> None:
        last = self.file(self._end(stack), "input")
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
            for place in reversed(self.walk.places(stack)):
                self._reverse_block(place)
                done += 1
                self.progress(done, self.total, "reverse sweep")

    def _loss_gradient(self, stack: Stack) -> None:
        end, last = self._end(stack), self.walk.places(stack)[-1]
        leaving, gradient = self.file(end, "input"), self.file(end, "gradient")
        if gradient.exists() or statistics_file(self.folder, last).exists():
            return
        for start in self.walk.starts:
            gradient.write(start, self.gradient_of(leaving.read(start, self.walk.batch), start))
        gradient.finish()

    def gradient_of(self, hidden: Tensor, start: int) -> Tensor:
        """Return the gradient that is carried back from behind the last block, of one batch."""
        return self.walk.drawn_gradient(hidden, start)

    def _encoder_gradient(self, stack: Stack) -> None:
        """Carry the gradient of the encoder's output back through its final norm."""
        end, last = self._end(stack), self.walk.places(stack)[-1]
        leaving, gradient = self.file(end, "input"), self.file(end, "gradient")
        if gradient.exists() or statistics_file(self.folder, last).exists():
            return
        outside = self.file(Place(stack, 0), "encoded.gradient")
        for start in self.walk.starts:
            hidden = leaving.read(start, self.walk.batch).requires_grad_()
            with torch.enable_grad():
                encoded = self.walk.encoded(hidden, start)
            flow = outside.read(start, self.walk.batch)
            gradient.write(start, torch.autograd.grad(encoded, hidden, flow)[0])
        gradient.finish()

    def _reverse_block(self, place: Place) -> None:
        target = statistics_file(self.folder, place)
        behind = self.file(place.following, "gradient")
        if not target.exists():
            self.collect(place, target)
        behind.remove()
        self.file(place.following, "input").remove()
        self.file(place.following, "encoded.gradient").remove()

    def collect(self, place: Place, target: Path) -> None:
        """Write the moments of every site of one block."""
        collector = Collector()
        names = self.watched(place, collector)
        each = torch.cat([(self.walk.targets(at) != -100).sum(1) for at in self.walk.starts])
        write(target, collector, names, (int(each[::2].sum()), int(each[1::2].sum())))

    def watched(self, place: Place, collector: Collector) -> list[str]:
        """Carry the gradient back through a watched block, and return the names of its sites."""
        block = self.walk.block(place)
        prefix = place.prefix
        names = [site.name for site in self.sites if site.name.startswith(prefix)]
        with collector.watching(block, {name.removeprefix(prefix): name for name in names}):
            self._backward(place, block, collector)
        return names

    def _backward(self, place: Place, block: nn.Module, collector: Collector) -> None:
        entering, behind = self.file(place, "input"), self.file(place.following, "gradient")
        before = self.file(place, "gradient")
        encoder = self.encoder(place.stack)
        first = self.stacks[0]
        outside_before = self.file(Place(first, place.index), "encoded.gradient")
        outside_behind = self.file(Place(first, place.index + 1), "encoded.gradient")
        for start in self.walk.starts:
            hidden = entering.read(start, self.walk.batch).requires_grad_()
            outside = self._read(encoder, start)
            sources = [hidden] if outside is None else [hidden, outside.requires_grad_()]
            flow = behind.read(start, self.walk.batch)
            read, other = (
                Read.of(self.walk.stack_mask(part, start), start) for part in (place.stack, first)
            )
            with collector.batch(read, outside, other), torch.enable_grad():
                leaving = self.walk.run(block, place, start, hidden, outside)
                gradients = torch.autograd.grad(leaving, sources, flow, allow_unused=True)
            before.write(start, _or_zeros(gradients[0], hidden))
            if outside is not None:
                flow = _or_zeros(gradients[1], outside)
                if outside_behind.exists():
                    flow = flow + outside_behind.read(start, self.walk.batch)
                outside_before.write(start, flow)
        before.finish()
        if encoder is not None:
            outside_before.finish()

    def embedded(self) -> None:
        """Write the moment of the gradients that come out at the front, where embeddings enter."""
        target = embedding_file(self.folder)
        entering = [self.file(Place(stack, 0), "gradient") for stack in self.stacks]
        if target.exists() or not all(file.exists() for file in entering):
            return
        total = SecondMoment.zeros(self.walk.hidden_size(self.stacks[0]))
        for stack, file in zip(self.stacks, entering, strict=True):
            for start in self.walk.starts:
                mask = self.walk.stack_mask(stack, start)
                total.add(file.read(start, self.walk.batch)[mask])
        moment = total.moment() / self.walk.predicted()
        with atomic_file(target) as partial:
            save_file({"gradient_moment": moment}, partial)

    def clear(self) -> None:
        """Remove all work files."""
        for stack in self.stacks:
            for pattern in ("input", "gradient", "encoded", "encoded.gradient"):
                for path in self.folder.glob(f"{stack.path}.*.{pattern}*"):
                    path.unlink()


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient
