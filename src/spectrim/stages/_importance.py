"""How much each block matters: what the loss, the hidden states or the weights say of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from spectrim.files import atomic_file, key_of, locked
from spectrim.job.order import Ordered
from spectrim.model import sites
from spectrim.model.architectures import Place, Stack
from spectrim.model.sites import weight
from spectrim.progress import Progress
from spectrim.walk.collector import Collector
from spectrim.walk.statistics import statistics_file
from spectrim.walk.stream import Stream
from spectrim.walk.sweeps import Sweep
from spectrim.walk.walk import BlockWalk


def importance(model: Ordered, kind: str, candidates: list[int]) -> dict[int, float]:
    """Return how important some blocks are, by their number in this model; the least may go.

    kind: one of IMPORTANCES. What was measured is kept in the cache.
    """

    def measured() -> dict[str, float]:
        found = IMPORTANCES[kind](model, candidates)
        return {str(index): found[index] for index in candidates}

    found = _remembered(model, (kind, candidates), measured)
    return {int(index): value for index, value in found.items()}


def loss_in_order(model: Ordered) -> float:
    """Return the loss on the search split, nats per token."""

    def measured() -> dict[str, float]:
        walk = model.walk(model.job.splits.search)
        return {"loss": Stream(walk).through(walk.block).mean()}

    return _remembered(model, ("loss",), measured)["loss"]


def by_perplexity(model: Ordered, candidates: list[int]) -> dict[int, float]:
    """Return by how many nats per token the loss on the search split rises without each block.

    Shortened LLaMA (arXiv 2402.02834), section 3.1; its perplexity is the exponential of the loss.
    """
    walk = model.walk(model.job.splits.search)
    losses = losses_without(walk, model.stack, candidates, model.job.progress)
    return {index: losses[index] - losses[None] for index in candidates}


def by_angle(model: Ordered, candidates: list[int]) -> dict[int, float]:
    """Return 1 - the mean cosine between what enters each block and what leaves it.

    ShortGPT (arXiv 2403.03853), equation 1: Block Influence, over the calibration tokens.
    """
    sweep = _sweep(model, Sweep)
    sweep.forward()
    found = {index: 1 - _mean_cosine(sweep, Place(model.stack, index)) for index in candidates}
    shutil.rmtree(sweep.folder)
    return found


def by_taylor(model: Ordered, candidates: list[int]) -> dict[int, float]:
    """Return Σ |w ∂ℓ/∂w| over the linear maps of each block, ℓ the mean loss on calibration text.

    Shortened LLaMA (arXiv 2402.02834), section 3.1.
    """
    sweep = _sweep(model, TaylorSweep)
    if not sweep.complete():
        sweep.forward()
        sweep.reverse()
    files = {
        index: statistics_file(sweep.folder, Place(model.stack, index)) for index in candidates
    }
    found = {index: float(load_file(file)["importance"]) for index, file in files.items()}
    shutil.rmtree(sweep.folder)
    return found


def by_magnitude(model: Ordered, candidates: list[int]) -> dict[int, float]:
    """Return Σ |w| over the linear maps of each block (L1; arXiv 2402.02834, section 3.1)."""
    walk = model.walk(model.job.splits.search)
    found = {}
    for index in candidates:
        place = Place(model.stack, index)
        block, prefix = walk.block(place), place.prefix
        names = [s.name for s in sites.find(model.model) if s.name.startswith(prefix)]
        matrices = (weight(block.get_submodule(name.removeprefix(prefix))) for name in names)
        found[index] = sum(float(matrix.double().abs().sum()) for matrix in matrices)
    return found


IMPORTANCES: dict[str, Callable[[Ordered, list[int]], dict[int, float]]] = {
    "perplexity": by_perplexity,
    "angular": by_angle,
    "taylor": by_taylor,
    "magnitude": by_magnitude,
}


def losses_without(
    walk: BlockWalk, stack: Stack, candidates: list[int], progress: Progress
) -> dict[int | None, float]:
    """Return the loss in nats per token without each of some blocks of a stack; None: with all.

    A trial branches off in front of the block that it leaves out, so that it costs only the blocks
    behind; every block is read once for all trials. Hidden states stay in memory, one set a trial.
    """
    streams: dict[int | None, Stream] = {None: Stream(walk)}
    total = sum(len(walk.blocks(part)) for part in walk.architecture.stacks)
    done = 0
    for part in walk.architecture.stacks:
        streams = {trial: stream.enter(part) for trial, stream in streams.items()}
        for place in walk.places(part):
            if part is stack and place.index in candidates:
                streams[place.index] = streams[None]
            block = walk.block(place)
            for trial, stream in streams.items():
                if part is not stack or trial != place.index:
                    streams[trial] = stream.behind(block, place)
            progress(done := done + 1, total, "measuring blocks")
    return {trial: stream.mean() for trial, stream in streams.items()}


def _mean_cosine(sweep: Sweep, place: Place) -> float:
    walk = sweep.walk
    entering, leaving = (sweep.file(at, "input") for at in (place, place.following))
    total, tokens = 0.0, 0
    for start in walk.starts:
        mask = walk.stack_mask(place.stack, start)
        before, after = (file.read(start, walk.batch)[mask] for file in (entering, leaving))
        total += float(functional.cosine_similarity(before.double(), after.double(), dim=-1).sum())
        tokens += len(before)
    return total / tokens


class TaylorSweep(Sweep):
    """Sweeps that keep one number of each block, Σ |w ∂ℓ/∂w|, in the place of its moments."""

    def gradient_of(self, hidden: Tensor, start: int) -> Tensor:
        """Return the gradient of the loss on the text itself, as it is published."""
        return self.walk.loss_gradient(hidden, start)[0]

    def collect(self, place: Place, target: Path) -> None:
        """Write the importance of one block."""
        collector = WeightGradients()
        self.watched(place, collector)
        parts = [float(collector.products[name].abs().sum()) for name in collector.products]
        score = torch.tensor(sum(parts) / self.walk.predicted(), dtype=torch.float64)
        with atomic_file(target) as partial:
            save_file({"importance": score}, partial)


@dataclass
class WeightGradients(Collector):
    """Adds up w ∂ℓ/∂w [out, in] of every watched map over all batches."""

    products: dict[str, Tensor] = field(default_factory=dict)

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs = args[0].detach().flatten(0, -2)
            if output.requires_grad:
                output.register_hook(lambda g: self._add(name, module, g.flatten(0, -2), inputs))

        return hook

    def _add(self, name: str, module: nn.Module, flow: Tensor, inputs: Tensor) -> None:
        product = weight(module).float() * (flow.float().T @ inputs.float())
        self.products[name] = self.products.get(name, 0) + product


def _sweep(model: Ordered, kind: type[Sweep]) -> Any:
    job = model.job
    folder = job.work / "importance" / _key(model, kind.__name__)
    folder.mkdir(parents=True, exist_ok=True)
    found = sites.find(model.model)
    return kind(model.walk(job.splits.calibration), folder, found, job.progress)


def _remembered(
    model: Ordered, key: tuple[object, ...], measured: Callable[[], dict[str, float]]
) -> dict[str, float]:
    """Return what was measured before, or measure it and keep it in the cache."""
    file = model.job.cache / "importance" / f"{_key(model, *key)}.json"
    with locked(file):
        if not file.exists():
            found = measured()
            with atomic_file(file) as partial:
                partial.write_text(json.dumps(found))
    known: dict[str, float] = json.loads(file.read_text())
    return known


def _key(model: Ordered, *parts: object) -> str:
    job = model.job
    search = job.splits.search.digest()
    return key_of(1, job.statistics_key, search, model.stack.path, model.order, parts)
