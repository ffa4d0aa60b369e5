"""Training that can be killed at any moment and goes on to the same bits, and stops by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.files import atomic_file
from spectrim.healing.windows import rate
from spectrim.job.agreement import alike, average, joined, mean, refuse_others
from spectrim.processes import process, processes
from spectrim.progress import Progress

VERSION = "4"  # of what is trained and how; a checkpoint of another one is of no use
DIVERGED = 2.0  # nats above the first search loss: training has diverged


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train, and how often the model is evaluated and kept.

    steps: of the optimiser. learning_rate: the highest; it rises for ``warmup`` steps and falls
    along half a cosine. accumulation: batches of a step, on each process. every: steps between two
    evaluations on the search split, at which a checkpoint is written. patience: evaluations without
    a gain after which training ends. seed: of the order of the batches.
    """

    steps: int
    learning_rate: float
    warmup: int
    accumulation: int
    every: int
    patience: int
    seed: int


@dataclass
class State:
    """How far training has come; a checkpoint holds it.

    at: steps done. first: the search loss before training. best: that of the kept weights, which
    are those after step ``best_at``. worse: evaluations since without a gain. stopped: why training
    ended early, nothing where it did not.
    """

    at: int = 0
    first: float = math.nan
    best: float = math.inf
    best_at: int = 0
    worse: int = 0
    stopped: str = ""


@runtime_checkable
class Optimizer(Protocol):
    """What is done with gradients."""

    def begin(self, rate: float) -> None:
        """Make ready for the backward passes of a step at this learning rate."""

    def end(self) -> None:
        """Finish the step."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that decides later steps, by name."""

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up what ``tensors`` gave."""


@dataclass(frozen=True)
class Run:
    """A model in training.

    loss: of one batch, by its first sequence. evaluate: the loss on the search split, nats per
    token. starts: the first sequence of every batch.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    optimizer: Optimizer
    loss: Callable[[nn.Module, int], Tensor]
    evaluate: Callable[[nn.Module], float]
    starts: list[int]


def train(run: Run, schedule: Schedule, folder: Path, progress: Progress) -> State:
    """Train until the steps are done, nothing is gained, or training diverges.

    The model ends with the weights that had the lowest loss on the search split, those it came with
    among them. folder: of the checkpoints; training goes on from one that is there.
    """
    run.model.to(joined().device)
    refuse_others(run.parameters)
    state = _load(run, folder)
    if not (folder / "best.safetensors").exists():
        state = State(first=mean(run.evaluate(run.model)))
        if not math.isfinite(state.first):
            raise SpectrimError(
                "the loss of the model is no number, so it cannot be healed; cut it less"
            )
        _keep(run, state, state.first, folder)
    while state.at < schedule.steps and not state.stopped:
        loss = _step(run, schedule, state.at)
        state.at += 1
        if not math.isfinite(loss):
            state.stopped = f"diverged at step {state.at}, where the loss is no number"
        elif state.at % schedule.every == 0 or state.at == schedule.steps:
            _evaluate(run, schedule, state, folder)
        progress(state.at, schedule.steps, "healing")
    if state.stopped:
        _save(run, state, folder)
    kept = load_file(folder / "best.safetensors")
    for name, parameter in run.parameters.items():
        parameter.data.copy_(kept[name])
    run.model.to("cpu")
    return state


def _step(run: Run, schedule: Schedule, at: int) -> float:
    """Take one step and return its loss; gradients of several processes are averaged."""
    run.optimizer.begin(schedule.learning_rate * rate(at, schedule.steps, schedule.warmup))
    total = 0.0
    for part in range(schedule.accumulation):
        number = (at * schedule.accumulation + part) * processes() + process()
        batch = _batch(run.starts, number, schedule.seed)
        loss = run.loss(run.model, batch) / schedule.accumulation
        total += float(loss.detach())
        if not math.isfinite(total):
            break
        loss.backward()
    loss_of_all = mean(total)
    if math.isfinite(loss_of_all):
        average(run.parameters.values())
        run.optimizer.end()
    return loss_of_all


def _batch(starts: list[int], number: int, seed: int) -> int:
    """Return the batch of that number in an endless row of shuffled epochs."""
    epoch, inside = divmod(number, len(starts))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return starts[int(torch.randperm(len(starts), generator=generator)[inside])]


def _evaluate(run: Run, schedule: Schedule, state: State, folder: Path) -> None:
    loss = mean(run.evaluate(run.model))
    if not math.isfinite(loss) or loss > state.first + DIVERGED:
        state.stopped = f"diverged by step {state.at}, where the search loss is {loss:.3f}"
        return
    _keep(run, state, loss, folder)
    if state.worse >= schedule.patience:
        state.stopped = f"stopped at step {state.at}, as nothing more was gained"


def _keep(run: Run, state: State, loss: float, folder: Path) -> None:
    """Keep what is best so far, then a checkpoint; killed between the two, both are made again."""
    better = loss < state.best
    state.worse = 0 if better else state.worse + 1
    if better:
        state.best, state.best_at = loss, state.at
        with atomic_file(folder / "best.safetensors") as partial:
            save_file(_values(run), partial)
    _save(run, state, folder)


def _values(run: Run) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in run.parameters.items()}


def _save(run: Run, state: State, folder: Path) -> None:
    tensors = {f"weight {name}": value for name, value in _values(run).items()}
    for name, value in run.optimizer.tensors().items():
        tensors[f"update {name}"] = value.detach().cpu().contiguous()
    metadata = {
        "version": VERSION,
        "processes": str(processes()),
        "state": json.dumps(asdict(state)),
    }
    with atomic_file(folder / "checkpoint.safetensors") as partial:
        save_file(tensors, partial, metadata=metadata)


def _load(run: Run, folder: Path) -> State:
    """Take up a checkpoint; several processes that do not have the same one begin anew."""
    file = folder / "checkpoint.safetensors"
    metadata = _metadata(file)
    usable = metadata.get("version") == VERSION and metadata.get("processes") == str(processes())
    at = json.loads(metadata["state"])["at"] if usable else -1
    if not alike(at) or at < 0:
        (folder / "best.safetensors").unlink(missing_ok=True)
        return State()
    held = load_file(file)
    for name, parameter in run.parameters.items():
        parameter.data.copy_(held[f"weight {name}"])
    run.optimizer.load(
        {key.removeprefix("update "): v for key, v in held.items() if key.startswith("update ")}
    )
    return State(**json.loads(metadata["state"]))


def _metadata(file: Path) -> dict[str, str]:
    """Return what a checkpoint says of itself, nothing where there is none."""
    if not file.exists():
        return {}
    with safe_open(file, framework="pt") as held:
        return dict(held.metadata())
