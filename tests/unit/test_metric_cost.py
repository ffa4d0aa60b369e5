"""Training steps, energy and memory: on clocks and meters that the models themselves move."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from spectrim.errors import SpectrimError, UnavailableError
from spectrim.metrics import Evaluation, Measurement, Pair, Score, compare, memory, training_step
from spectrim.metrics import energy as energies
from spectrim.metrics._compare import warnings
from tiny_models import build, tokens

TEXTS = {"text": torch.ones(3, 9, dtype=torch.long)}


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Slow(nn.Module):
    """Takes so long, forward and backward, per token that it is shown."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, use_cache: bool
    ) -> SimpleNamespace:
        assert self.training and not use_cache and self.weight.requires_grad
        self.clock.time += self.seconds * input_ids.shape[1]
        loss = (self.weight * 2).sum()
        loss.register_hook(self.backward)
        return SimpleNamespace(loss=loss)

    def backward(self, gradient: torch.Tensor) -> None:
        self.clock.time += self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("spectrim.metrics.speed.perf_counter", made)
    return made


def by_name(found: Measurement, label: str) -> dict[str, Score]:
    return {score.name: score for score in found[label]}


def test_a_step_takes_forward_and_backward(clock: Clock) -> None:
    models = {"dense": Slow(clock, 0.1), "small": Slow(clock, 0.05), "int8": Slow(clock, 1.0)}
    chosen = Evaluation(rounds=3, baselines={"int8": 0})
    found = training_step.measure(Pair(models, TEXTS, chosen))  # type: ignore[arg-type]
    assert set(found) == {"dense", "small"}
    dense, small = by_name(found, "dense"), by_name(found, "small")
    assert dense["training_step"].value == pytest.approx(1000.0)  # 9 tokens and the way back
    assert small["training_step_ratio"].value == pytest.approx(0.5)
    assert set(dense) == {"training_step"}
    assert small["training_step"].settings["tokens"] == 9
    assert (small["training_step"].unit, small["training_step"].n) == ("ms", 3)


@pytest.mark.parametrize("family", ["llama", "mixtral", "bart"])
def test_a_model_is_afterwards_as_it_was(family: str) -> None:
    model = build(family).eval()
    parameters = dict(model.named_parameters())
    first, second, *_ = parameters.values()
    second.requires_grad_(False)
    first.grad = kept = torch.ones_like(first)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        (times,) = training_step.training_step([model], tokens(sequences=1, length=8), rounds=2)
    assert len(times) == 2 and min(times) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert first.grad is kept and bool((kept == 1).all())
    assert not second.requires_grad and all(one.grad is None for one in [*parameters.values()][1:])
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_that_fails_leaves_the_model_as_it_was() -> None:
    model = build("llama").eval()
    model.requires_grad_(False)
    with pytest.raises(IndexError):
        training_step.training_step([model], torch.full((1, 4), 10**6), rounds=1)
    assert not any(one.requires_grad for one in model.parameters()) and not model.training


@pytest.mark.parametrize(("rounds", "length"), [(0, 4), (1, 1)])
def test_a_step_needs_a_round_and_two_tokens(rounds: int, length: int) -> None:
    ids = torch.zeros(1, length, dtype=torch.long)
    with pytest.raises(SpectrimError, match="a training step needs a round and two tokens"):
        training_step.training_step([], ids, rounds=rounds)
    texts = {"text": ids}
    assert training_step.measure(Pair({"small": nn.Identity()}, texts, Evaluation(rounds=0))) == {}  # type: ignore[dict-item]


class Hungry(nn.Module):
    """Takes so many joules per token that it sees."""

    def __init__(self, taken: list[float], joules: float) -> None:
        super().__init__()
        self.taken, self.joules = taken, joules

    def forward(
        self, input_ids: torch.Tensor, past_key_values: int = 0, use_cache: bool = False
    ) -> SimpleNamespace:
        self.taken.append(self.joules * input_ids.shape[1])
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 4), past_key_values=1)


def counting(taken: list[float]) -> energies.Meter:
    def meter(work: Callable[[], None]) -> float:
        before = sum(taken)
        work()
        return sum(taken) - before

    return meter


def test_joules_per_thousand_tokens_are_what_the_counter_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(energies, "SECONDS", 0.001)  # the work is repeated all the same
    taken: list[float] = []
    monkeypatch.setattr(energies, "no_counter", lambda where: None)
    monkeypatch.setattr(energies, "_codecarbon", lambda where: counting(taken))
    models = {"dense": Hungry(taken, 0.5), "small": Hungry(taken, 0.25), "int4": Hungry(taken, 9.0)}
    chosen = Evaluation(rounds=2, prompt_tokens=6, new_tokens=2, baselines={"int4": 0})
    found = energies.measure(Pair(models, TEXTS, chosen))  # type: ignore[arg-type]
    assert set(found) == {"dense", "small"}
    assert by_name(found, "dense")["energy"].value == pytest.approx(500.0)
    assert by_name(found, "small")["energy_ratio"].value == pytest.approx(0.5)
    assert by_name(found, "small")["energy"].unit == "J/1000 tokens"


def test_a_counter_that_stands_still_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energies, "SECONDS", 0.0)
    monkeypatch.setattr(energies, "no_counter", lambda where: None)
    monkeypatch.setattr(energies, "_codecarbon", lambda where: counting([]))
    pair: Any = Pair({"small": Hungry([], 1.0)}, TEXTS, Evaluation(rounds=1))  # type: ignore[dict-item]
    (score,) = energies.measure(pair)["small"]
    assert score.settings["not_measured"] == "the counter did not move"


def test_without_a_counter_it_says_so_and_gives_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("codecarbon")
    monkeypatch.setattr("codecarbon.core.cpu.is_rapl_available", lambda: False)
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, eos_token_id=None,
    )  # fmt: skip
    chosen = Evaluation(rounds=1, tasks=("energy",), new_tokens=1, sample_tokens=0)
    found = compare(None, LlamaForCausalLM(config), None, TEXTS, chosen)
    (row,) = found["rows"]
    assert row["energy"]["value"] is None and row["energy"]["n"] == 0
    assert "RAPL" in row["energy"]["settings"]["not_measured"]
    assert not any("energy" in said for said in found["warnings"])


def test_unknown_processors_have_no_counter() -> None:
    pytest.importorskip("codecarbon")
    assert energies.no_counter(torch.device("meta")) == "no counter is known for meta"


def test_what_was_not_measured_is_no_broken_score() -> None:
    missing = Score.not_measured("energy", "J", "lower", "no counter")
    broken = Score("loss", float("nan"), "nats", "lower")
    said = warnings({"small": [missing, broken]})
    assert said == ["The loss of small is not a finite number."]


def test_without_codecarbon_energy_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(UnavailableError, match=r"pip install 'spectrim\[evaluation\]'"):
        energies.no_counter(torch.device("cpu"))


def test_codecarbon_writes_sends_and_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("codecarbon")

    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.chdir(tmp_path)
    energies.no_counter(torch.device("cpu"))
    joules = energies._codecarbon(torch.device("cpu"))(lambda: None)
    assert joules >= 0
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_memory_needs_a_folder() -> None:
    with pytest.raises(UnavailableError, match="memory is measured on model folders"):
        memory.measure(Pair({"small": nn.Identity()}, TEXTS))  # type: ignore[dict-item]


def test_a_folder_that_does_not_load_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="the memory of .* could not be measured: "):
        memory.peak_memory(tmp_path, [1])


def test_the_libraries_are_taken_off_and_folders_alone_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[object, list[int], int]] = []

    def peak(folder: Path | None, prompt: Any = (), new_tokens: int = 1) -> int:
        asked.append((folder, list(prompt), new_tokens))
        return 100 if folder is None else 350

    monkeypatch.setattr(memory, "peak_memory", peak)
    models: Any = {"dense": nn.Identity(), "int8": nn.Identity()}
    chosen = Evaluation(folders={"dense": tmp_path}, prompt_tokens=4, new_tokens=3)
    found = memory.measure(Pair(models, TEXTS, chosen))
    assert set(found) == {"dense"}
    scores = by_name(found, "dense")
    assert (scores["peak_memory"].value, scores["model_memory"].value) == (350, 250)
    assert scores["peak_memory"].settings["libraries"] == 100
    assert asked == [(None, [], 1), (tmp_path, [1, 1, 1, 1], 3)]
