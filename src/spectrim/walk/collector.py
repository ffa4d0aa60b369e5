"""Hooks on the sites of one block that add up the moments of inputs and of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from spectrim.walk.moments import SecondMoment


@dataclass
class Felt:
    """What is added up of a site where the loss feels it, over one half of the sequences."""

    inputs: SecondMoment
    """Σ ‖g‖² x xᵀ."""
    gradients: SecondMoment
    """Σ g gᵀ."""
    weight: float = 0.0
    """Σ ‖g‖²."""

    def add(self, x: Float[Tensor, "tokens in"], g: Float[Tensor, "tokens out"]) -> None:
        """Add tokens with the inputs and the gradients that they had."""
        squares = g.float().square().sum(1)
        self.inputs.add((x.float() * squares.sqrt()[:, None]).to(x.dtype))
        self.gradients.add(g)
        self.weight += float(squares.double().sum())


@dataclass(frozen=True)
class Read:
    """Which tokens of a batch are text, and which of them are of odd sequences, both [tokens]."""

    text: Bool[Tensor, " tokens"]
    odd: Bool[Tensor, " tokens"]

    @classmethod
    def of(cls, mask: Bool[Tensor, "batch length"], start: int) -> Read:
        """Return this of a batch whose first sequence has the number ``start``."""
        odd = (torch.arange(len(mask)) + start) % 2 == 1
        return cls(mask.reshape(-1), odd[:, None].expand_as(mask).reshape(-1))


@dataclass
class Collector:
    """Hooks on the sites of one block that add up their moments; shared inputs are added once."""

    read: Read | None = None
    """The tokens of the batch."""
    encoder: Tensor | None = None
    """The encoder's output, which cross-attention reads."""
    encoder_read: Read | None = None
    """The tokens of that."""
    inputs: dict[str, SecondMoment] = field(default_factory=dict)
    """Σ x xᵀ by the site that is the leader of those with this input."""
    even: dict[str, SecondMoment] = field(default_factory=dict)
    """The same over the even sequences."""
    felt: dict[str, tuple[Felt, Felt]] = field(default_factory=dict)
    """By site, of the even sequences and of the odd ones."""
    leader: dict[str, str] = field(default_factory=dict)
    """By site the first site that was given the very same input, as q is for k and v."""
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
        read: Read,
        encoder: Tensor | None,
        encoder_read: Read,
    ) -> Iterator[None]:
        """Take one batch; its tensors are let go at the end.

        encoder: what cross-attention reads in place of the block's own hidden states.
        """
        self.read, self.encoder_read = read, encoder_read
        self.encoder = encoder
        try:
            yield
        finally:
            self._seen.clear()
            self.encoder = None

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0]
            read = self.encoder_read if x is self.encoder else self.read
            assert read is not None
            text, odd = _routed(read, module)
            rows = _rows(x, text)
            leader = next((other for seen, other in self._seen if seen is x), None)
            if leader is None:
                self._seen.append((x, name))
                leader = name
                _add(self.inputs, name, rows)
                _add(self.even, name, rows[~odd[text]])
            self.leader[name] = leader
            if output.requires_grad:
                output.register_hook(lambda g: self._feel(name, rows, _rows(g, text), odd[text]))

        return hook

    def _feel(
        self,
        name: str,
        x: Float[Tensor, "tokens in"],
        g: Float[Tensor, "tokens out"],
        odd: Bool[Tensor, " tokens"],
    ) -> None:
        if name not in self.felt:
            self.felt[name] = tuple(  # type: ignore[assignment]
                Felt(SecondMoment.zeros(x.shape[1]), SecondMoment.zeros(g.shape[1]))
                for _ in range(2)
            )
        for half, chosen in zip(self.felt[name], (~odd, odd), strict=True):
            if bool(chosen.all()):
                half.add(x, g)
            elif bool(chosen.any()):
                half.add(x[chosen], g[chosen])


def _routed(read: Read, module: nn.Module) -> tuple[Bool[Tensor, " rows"], Bool[Tensor, " rows"]]:
    """Return which rows of a module are text, and which are of odd sequences."""
    routed = getattr(module, "token_index", None)  # set by Experts: which tokens came here
    return (read.text, read.odd) if routed is None else (read.text[routed], read.odd[routed])


def _rows(value: Tensor, text: Bool[Tensor, " rows"]) -> Float[Tensor, "tokens size"]:
    """Return the vectors of the tokens that are text."""
    rows = value.detach().reshape(-1, value.shape[-1])
    return rows if bool(text.all()) else rows[text]


def _add(sums: dict[str, SecondMoment], name: str, rows: Float[Tensor, "tokens size"]) -> None:
    if len(rows) == 0:
        return
    if name not in sums:
        sums[name] = SecondMoment.zeros(rows.shape[-1])
    sums[name].add(rows)
