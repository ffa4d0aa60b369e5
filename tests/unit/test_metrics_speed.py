"""Speed on a clock that the models themselves move."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.metrics import Evaluation, Pair
from spectrim.metrics.speed import measure, speed


class Clock:
    def __init__(self) -> None:
        self.time = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.time


class Timed(nn.Module):
    """Takes so long per token that it is shown, and remembers how many it has seen."""

    def __init__(self, clock: Clock, name: str, seconds: float) -> None:
        super().__init__()
        self.clock, self.name, self.seconds = clock, name, seconds

    def forward(
        self,
        input_ids: torch.Tensor,
        past_key_values: int = 0,
        use_cache: bool = False,
        logits_to_keep: int = 0,
    ) -> SimpleNamespace:
        assert use_cache
        self.clock.time += self.seconds * input_ids.shape[1]
        self.clock.log.append(f"{self.name}{input_ids.shape[1]}@{past_key_values}")
        seen = past_key_values + input_ids.shape[1]
        logits = torch.zeros(1, logits_to_keep or input_ids.shape[1], 4)
        return SimpleNamespace(logits=logits, past_key_values=seen)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("spectrim.metrics.speed.perf_counter", made)
    return made


def test_tokens_per_second_are_what_the_clock_says(clock: Clock) -> None:
    models = [Timed(clock, "d", 0.5), Timed(clock, "s", 0.25)]
    dense, small = speed(models, torch.zeros(1, 6, dtype=torch.long), rounds=3, new_tokens=4)
    assert dense.prefill == dense.decode == pytest.approx((2.0, 2.0, 2.0))
    assert small.prefill == small.decode == pytest.approx((4.0, 4.0, 4.0))


def test_models_take_turns_after_a_warm_up_and_decode_from_the_cache(clock: Clock) -> None:
    models = [Timed(clock, "d", 1.0), Timed(clock, "s", 1.0)]
    speed(models, torch.zeros(1, 6, dtype=torch.long), rounds=2, new_tokens=2)
    one = [f"{{0}}{part}" for part in ("6@0", "1@6", "1@7")]
    expected = [part.format(name) for name in "dssdds" for part in one]
    assert clock.log == expected


def test_the_ratio_comes_round_by_round_with_its_range(clock: Clock) -> None:
    models = {"dense": Timed(clock, "d", 1.0), "small": Timed(clock, "s", 0.5)}
    texts = {"text": torch.zeros(3, 9, dtype=torch.long)}
    evaluation = Evaluation(rounds=3, prompt_tokens=5, new_tokens=2)
    found = measure(Pair(models, texts, evaluation))  # type: ignore[arg-type]
    scores = {score.name: score for score in found["small"]}
    assert scores["decode_ratio"].value == pytest.approx(2.0)
    assert scores["prefill_ratio"].interval == pytest.approx((2.0, 2.0))
    assert {score.name for score in found["dense"]} == {"prefill", "decode", "first_token"}
    assert all(score.n == 3 for score in scores.values())
    ways = {score.name: score.better for score in scores.values()}
    assert ways.pop("first_token") == ways.pop("first_token_ratio") == "lower"
    assert set(ways.values()) == {"higher"}
    assert "d5@0" in clock.log and "d6@0" not in clock.log


def test_the_first_token_takes_as_long_as_the_prompt(clock: Clock) -> None:
    models = {"dense": Timed(clock, "d", 1.0), "small": Timed(clock, "s", 0.25)}
    texts = {"text": torch.zeros(1, 9, dtype=torch.long)}
    found = measure(Pair(models, texts, Evaluation(rounds=2, prompt_tokens=6)))  # type: ignore[arg-type]
    dense, small = ({score.name: score for score in found[label]} for label in models)
    assert (dense["first_token"].value, dense["first_token"].unit) == (6000.0, "ms")
    assert small["first_token"].value == 1500.0
    assert small["first_token_ratio"].value == 0.25


def test_baselines_are_not_timed(clock: Clock) -> None:
    models = {"dense": Timed(clock, "d", 1.0), "int8": Timed(clock, "i", 1.0)}
    texts = {"text": torch.zeros(1, 9, dtype=torch.long)}
    chosen = Evaluation(rounds=1, baselines={"int8": 0})
    found = measure(Pair(models, texts, chosen))  # type: ignore[arg-type]
    assert set(found) == {"dense"}
    assert not any(entry.startswith("i") for entry in clock.log)


def test_no_rounds_means_no_speed() -> None:
    texts = {"text": torch.zeros(1, 4, dtype=torch.long)}
    assert measure(Pair({"small": nn.Identity()}, texts, Evaluation(rounds=0))) == {}  # type: ignore[dict-item]


@pytest.mark.parametrize(("rounds", "new", "length"), [(0, 1, 4), (1, 0, 4), (1, 1, 0)])
def test_speed_needs_something_to_time(rounds: int, new: int, length: int) -> None:
    prompt = torch.zeros(1, length, dtype=torch.long)
    message = "speed needs a round, a new token and a prompt; expected at least 1"
    with pytest.raises(SpectrimError, match=message):
        speed([nn.Identity()], prompt, rounds=rounds, new_tokens=new)
