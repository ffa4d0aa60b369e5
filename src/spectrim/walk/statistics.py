"""What calibration says about a site: how its inputs and the loss's gradients are distributed.

Collected by sweeps.py, kept in one file a block.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from weakref import WeakValueDictionary

from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from spectrim.model.architectures import Place
from spectrim.walk.triangles import square


@dataclass
class Statistics:
    """Moments of one site over the calibration tokens; what no method asked for stays None.

    tokens: how many tokens reached the site (for an expert, those routed to it).
    input_moment: A = E[x xᵀ], [in, in] float32, not centred.
    gradient_moment: G = E[g gᵀ], [out, out] float32, g = ∂ℓ/∂y for the loss in nats summed over
        tokens, for labels that the model draws (draws.py); the mean runs over all predicted
        tokens, also for an expert that few are routed to, so that ½ tr(Δᵀ G Δ A) is in nats per
        token of the whole text.
    weighted_moment: A_w = E[‖g‖² x xᵀ] / E[‖g‖²], [in, in] float32: what A is where the loss feels
        it (YAQA, 2505.22988, sketch A after one step).
    even: the same of every other sequence, the first one among them; None where the others, or
        these, came to nothing.
    even_shares: which part those sequences are of all predicted tokens, and of the sum of ‖g‖².
    samples: inputs of a little of the text as they are, for methods that train on them.
    """

    tokens: int
    input_mean: Float[Tensor, " in"] | None = None
    input_moment: Float[Tensor, "in in"] | None = None
    gradient_moment: Float[Tensor, "out out"] | None = None
    samples: Float[Tensor, "sampled in"] | None = None
    weighted_moment: Float[Tensor, "in in"] | None = None
    even: Statistics | None = None
    even_shares: tuple[float, float] = (0.5, 0.5)

    @property
    def loss_inputs(self) -> Float[Tensor, "in in"] | None:
        """Return the moment of the inputs that goes with G: A_w, or A where there is no such."""
        return self.input_moment if self.weighted_moment is None else self.weighted_moment

    def odd(self) -> Statistics | None:
        """Return the moments of the sequences that are not in ``even``: the whole less that part.

        What comes out of it was not seen by what is chosen with ``even``.
        """
        if self.even is None:
            return None
        gradients, weighted = self.even_shares
        inputs = self.even.tokens / self.tokens
        return replace(
            self,
            tokens=self.tokens - self.even.tokens,
            input_mean=_rest(self.input_mean, self.even.input_mean, inputs),
            input_moment=_rest(self.input_moment, self.even.input_moment, inputs),
            gradient_moment=_rest(self.gradient_moment, self.even.gradient_moment, gradients),
            weighted_moment=_rest(self.weighted_moment, self.even.weighted_moment, weighted),
            even=None,
        )


def _rest(whole: Tensor | None, part: Tensor | None, share: float) -> Tensor | None:
    if whole is None or part is None:
        return None
    return (whole - share * part) / (1 - share)


def statistics_file(folder: Path, place: Place) -> Path:
    """Return where the statistics of one block lie."""
    return folder / f"{place.name}.safetensors"


def embedding_file(folder: Path) -> Path:
    """Return where the moment of the gradients of what embeddings deliver lies, [hidden, hidden].

    Statistics of an earlier version lack it.
    """
    return folder / "embedding.safetensors"


def without_tokens(folder: Path, place: Place) -> list[str]:
    """Return the sites of one block that no token reached, as experts that none is routed to."""
    with safe_open(statistics_file(folder, place), framework="pt") as file:
        about = json.loads(file.metadata()["about"])["sites"]
        known = set(file.keys())
    return [
        name
        for name, facts in about.items()
        if facts["tokens"] == 0 or f"{name}.gradient_moment" not in known
    ]


def block_statistics(folder: Path, place: Place) -> BlockStatistics:
    """Return the statistics of every site of one block."""
    return BlockStatistics(statistics_file(folder, place))


class BlockStatistics(Mapping[str, Statistics]):
    """The statistics of the sites of one block, each read when it is asked for.

    All together are several times the size of the block. What is read and still in use somewhere
    is not read again, so that sites with one input share its moment.
    """

    def __init__(self, file: Path) -> None:
        """Read what the file says about itself; its tensors are read later."""
        self._file = cast(Any, safe_open(file, framework="pt"))
        about = json.loads(self._file.metadata()["about"])
        self._sites: dict[str, dict[str, Any]] = about["sites"]
        self._sizes: dict[str, int] = about["sizes"]
        self._kept = set(self._file.keys())
        self._used: WeakValueDictionary[str, Tensor] = WeakValueDictionary()
        self._last: tuple[str, Statistics] | None = None
        self._reading = threading.RLock()

    def __getitem__(self, name: str) -> Statistics:
        """Return the statistics of one site; threads that ask at once wait for each other."""
        with self._reading:
            if self._last is not None and self._last[0] == name:
                return self._last[1]
            self._last = None  # before others are read
            found = self._read(name)
            self._last = (name, found)
            return found

    def __iter__(self) -> Iterator[str]:
        """Return the names of the sites."""
        return iter(self._sites)

    def __len__(self) -> int:
        """Return how many sites there are."""
        return len(self._sites)

    def _read(self, name: str) -> Statistics:
        facts = self._sites[name]
        known = self._half(name, facts.get("input"), facts["tokens"], "")
        if "even" not in facts:
            return known
        even = self._half(name, facts["input"], facts["even_tokens"], "even.")
        return replace(known, even=even, even_shares=tuple(facts["even"]))

    def _half(self, name: str, shared: str | None, tokens: int, part: str) -> Statistics:
        return Statistics(
            tokens=tokens,
            input_mean=self._tensor(f"{shared}.{part}input_mean"),
            input_moment=self._tensor(f"{shared}.{part}input_moment"),
            gradient_moment=self._tensor(f"{name}.{part}gradient_moment"),
            weighted_moment=self._tensor(f"{name}.{part}weighted_moment"),
        )

    def _tensor(self, name: str) -> Tensor | None:
        if name not in self._kept:
            return None
        if (found := self._used.get(name)) is None:
            found = self._file.get_tensor(name)
            assert isinstance(found, Tensor)
            if (size := self._sizes.get(name)) is not None:
                found = square(found, size)
            self._used[name] = found
        return found
