"""The contract of metrics: scores, what to measure with, and the models under measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spectrim.metrics._reading import Reading
from spectrim.progress import Progress
from spectrim.registry import Registry

Better = Literal["lower", "higher", "none"]
Suite = Literal["basic", "quick", "full"]

metrics = Registry("metric", "spectrim.metrics", attribute=lambda name: "measure")


@dataclass(frozen=True)
class Score:
    """One number with its unit, the direction that is better, and how sure it is.

    ``n`` is how many things were averaged (sequences, rounds; 1 for a count). ``interval`` is the
    95 % interval unless ``settings["interval"]`` says otherwise. ``settings["text"]`` names the
    text that the number was measured on.
    """

    name: str
    value: float
    unit: str
    better: Better
    n: int = 1
    interval: tuple[float, float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def average(cls, reading: Reading, sums: Tensor, name: str, unit: str, better: Better) -> Score:
        """Return the mean over a reading's tokens of what was summed per sequence."""
        settings = {"tokens": int(reading.tokens.sum())}
        value, interval = reading.mean(sums), reading.interval(sums)
        return cls(name, value, unit, better, len(sums), interval, settings)

    @classmethod
    def not_measured(cls, name: str, unit: str, better: Better, reason: str) -> Score:
        """Return the score of what could not be measured, and says why, where a guess might be."""
        return cls(name, nan, unit, better, 0, None, {"not_measured": reason})

    def on(self, text: str) -> Score:
        """Return the score marked as measured on that text."""
        return replace(self, settings={**self.settings, "text": text})

    @property
    def finite(self) -> bool:
        """Return whether the value is a number at all."""
        return isfinite(self.value)

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON can hold; a value that is not finite becomes None."""
        both = self.interval and all(map(isfinite, self.interval))
        return asdict(self) | {
            "value": self.value if self.finite else None,
            "interval": list(self.interval or ()) if both else None,
            "settings": dict(self.settings),
        }


@dataclass(frozen=True)
class Evaluation:
    """What to measure with and how long.

    Args:
        name: the dense model's name, for the record.
        folders: label ("dense", "small") → model folder, for the bytes on disk.
        rounds: timed rounds of each model; 0 leaves speed out.
        prompt_tokens: tokens of the prefill that is timed.
        new_tokens: tokens of the decoding that is timed.
        sample_tokens: length of the greedy continuations.
        suite: "basic" measures on the texts; "quick" asks tasks too, a few items of each; "full"
            asks all items, and the baselines as well.
        tasks: only these tasks, whatever the suite; names of ``TASKS`` or of lm-eval.
        limit: items of each task in place of the suite's number.
        data: folder with the data sets; None takes the hub's.
        cache: folder that keeps answers between runs; None keeps none.
        fresh: ask again what is kept.
        identities: label → what stands for the model's content; without one nothing is kept.
        baselines: label of each model that is only there to be compared with → the bytes that it
            takes on disk, packed.
    """

    name: str = ""
    folders: Mapping[str, Path] = field(default_factory=dict)
    rounds: int = 5
    prompt_tokens: int = 128
    new_tokens: int = 16
    sample_tokens: int = 40
    seed: int = 0
    suite: Suite = "basic"
    tasks: tuple[str, ...] = ()
    limit: int | None = None
    data: Path | None = None
    cache: Path | None = None
    fresh: bool = False
    identities: Mapping[str, str] = field(default_factory=dict)
    baselines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """The models under measurement by label, the reference first, and the texts by name.

    ``texts`` holds token windows [sequences, length]; the first text is the headline one. A pair of
    one model is allowed: nothing is then compared. ``readings`` is filled by ``answers.readings``.
    """

    models: Mapping[str, PreTrainedModel]
    texts: Mapping[str, Tensor]
    evaluation: Evaluation = Evaluation()
    progress: Progress | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    redone: set[Path] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    readings: dict[str, Reading] = field(default_factory=dict)

    @property
    def judged(self) -> dict[str, PreTrainedModel]:
        """Return the models that tasks are asked of: baselines only in the full suite."""
        left_out = {} if self.evaluation.suite == "full" else self.evaluation.baselines
        return {label: model for label, model in self.models.items() if label not in left_out}

    def asked(self, task: str) -> bool:
        """Return whether a task is to be measured."""
        chosen = self.evaluation
        return task in chosen.tasks if chosen.tasks else chosen.suite != "basic"

    def items(self, quick: int, full: int | None = None) -> int | None:
        """Return how many items of a task to ask, None for all: the limit, else the suite's."""
        if self.evaluation.limit is not None:
            return self.evaluation.limit
        return quick if self.evaluation.suite == "quick" else full

    def said(self, what: str) -> Callable[[int, int], None]:
        """Return the progress callable of one piece of work; it says nothing where none listens."""

        def say(done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(done, total, what)

        return say


Measurement = dict[str, list[Score]]
"""Label of a model → its scores."""
