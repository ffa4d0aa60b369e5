"""Hooks on the sites of one block that add up the moments of inputs and of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor, nn

from spectrim.walk.moments import SecondMoment


@dataclass
class Collector:
    """Hooks on the sites of one block that add up their moments; shared inputs are added once."""

    mask: Tensor | None = None
    """Which tokens of the batch are text, [tokens]; None where all are."""
    encoder: Tensor | None = None
    """The encoder's output, which cross-attention reads."""
    encoder_mask: Tensor | None = None
    """Which tokens of that are text, [tokens]; None where all are."""
    inputs: dict[str, SecondMoment] = field(default_factory=dict)
    """E[x xᵀ] by the site that is the leader of those with this input."""
    gradients: dict[str, SecondMoment] = field(default_factory=dict)
    """E[g gᵀ] by site."""
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
