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
from spectrim.job.together import alike, average, joined, mean, refuse_others
from spectrim.processes import process, processes
from spectrim.progress import Progress

VERSION = "4"  # of what is trained and how; a checkpoint of another one is of no use
LOST = 2.0  # nats above the first search loss: training has diverged


@dataclass(frozen=True)
class Pace:
    """How long, how fast, and how often the model is judged and kept.

    steps: of the optimiser. accumulation: batches of a step, on each process. every: steps between
    two looks at the search split, at which a checkpoint is written. patience: looks without a gain
    after which training ends.
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
    """How far training has come. at: steps done; best: the search loss of the kept weights."""

    at: int = 0
    first: float = math.nan
    best: float = math.inf
    best_at: int = 0
    worse: int = 0
    stopped: str = ""


@runtime_checkable
class Update(Protocol):
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

    loss: of one batch, by its first sequence. judge: the loss on the search split, nats per token.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    update: Update
    loss: Callable[[nn.Module, int], Tensor]
    judge: Callable[[nn.Module], float]
    starts: list[int]


def train(run: Run, pace: Pace, folder: Path, progress: Progress) -> State:
    """Train until the steps are done, nothing is gained, or training diverges.

    The model ends with the weights that had the lowest loss on the search split, those it came with
    among them. folder: of the checkpoints; training goes on from one that is there.
    """
    run.model.to(joined().device)
    refuse_others(run.parameters)
    state = _load(run, folder)
    if not (folder / "best.safetensors").exists():
        state = State(first=mean(run.judge(run.model)))
        if not math.isfinite(state.first):
            raise SpectrimError(
                "the loss of the model is no number, so it cannot be healed; cut it less"
            )
        _judged(run, state, state.first, folder)
    while state.at < pace.steps and not state.stopped:
        loss = _step(run, pace, state.at)
        state.at += 1
        if not math.isfinite(loss):
            state.stopped = f"diverged at step {state.at}, where the loss is no number"
        elif state.at % pace.every == 0 or state.at == pace.steps:
            _judge(run, pace, state, folder)
        progress(state.at, pace.steps, "healing")
    if state.stopped:
        _save(run, state, folder)
    kept = load_file(folder / "best.safetensors")
    for name, parameter in run.parameters.items():
        parameter.data.copy_(kept[name])
    run.model.to("cpu")
    return state


def _step(run: Run, pace: Pace, at: int) -> float:
    """Take one step and return its loss; gradients of several processes are averaged."""
    run.update.begin(pace.learning_rate * rate(at, pace.steps, pace.warmup))
    total = 0.0
    for part in range(pace.accumulation):
        place = (at * pace.accumulation + part) * processes() + process()
        loss = run.loss(run.model, _batch(run.starts, place, pace.seed)) / pace.accumulation
        total += float(loss.detach())
        if not math.isfinite(total):
            break
        loss.backward()
    loss_of_all = mean(total)
    if math.isfinite(loss_of_all):
        average(run.parameters.values())
        run.update.end()
    return loss_of_all


def _batch(starts: list[int], place: int, seed: int) -> int:
    """Return the batch at a place of an endless row of shuffled passes over the text."""
    turn, inside = divmod(place, len(starts))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
    return starts[int(torch.randperm(len(starts), generator=generator)[inside])]


def _judge(run: Run, pace: Pace, state: State, folder: Path) -> None:
    found = mean(run.judge(run.model))
    if not math.isfinite(found) or found > state.first + LOST:
        state.stopped = f"diverged by step {state.at}, where the search loss is {found:.3f}"
        return
    _judged(run, state, found, folder)
    if state.worse >= pace.patience:
        state.stopped = f"stopped at step {state.at}, as nothing more was gained"


def _judged(run: Run, state: State, found: float, folder: Path) -> None:
    """Keep what is best so far, then a checkpoint; killed between the two, both are made again."""
    better = found < state.best
    state.worse = 0 if better else state.worse + 1
    if better:
        state.best, state.best_at = found, state.at
        with atomic_file(folder / "best.safetensors") as partial:
            save_file(_values(run), partial)
    _save(run, state, folder)


def _values(run: Run) -> dict[str, Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in run.parameters.items()}


def _save(run: Run, state: State, folder: Path) -> None:
    tensors = {f"weight {name}": value for name, value in _values(run).items()}
    for name, value in run.update.tensors().items():
        tensors[f"update {name}"] = value.detach().cpu().contiguous()
    about = {"version": VERSION, "processes": str(processes()), "state": json.dumps(asdict(state))}
    with atomic_file(folder / "checkpoint.safetensors") as partial:
        save_file(tensors, partial, metadata=about)


def _load(run: Run, folder: Path) -> State:
    """Take up a checkpoint; several processes that do not have the same one begin anew."""
    file = folder / "checkpoint.safetensors"
    about = _about(file)
    of_use = about.get("version") == VERSION and about.get("processes") == str(processes())
    at = json.loads(about["state"])["at"] if of_use else -1
    if not alike(at) or at < 0:
        (folder / "best.safetensors").unlink(missing_ok=True)
        return State()
    held = load_file(file)
    for name, parameter in run.parameters.items():
        parameter.data.copy_(held[f"weight {name}"])
    run.update.load(
        {key.removeprefix("update "): v for key, v in held.items() if key.startswith("update ")}
    )
    return State(**json.loads(about["state"]))


def _about(file: Path) -> dict[str, str]:
    """Return what a checkpoint says of itself, nothing where there is none."""
    if not file.exists():
        return {}
    with safe_open(file, framework="pt") as held:
        return dict(held.metadata())
