"""What cuts cost on text that they were not fitted to: even sequences choose, odd ones price."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from spectrim.cutting.currency import currency_losses
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.methods import Decomposition
from spectrim.walk.moments import Damping, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics

WIDTHS = (0.1, 0.3, 0.5, 0.7, 0.9)  # parts of all neurons at which narrower MLPs are priced


def priced_apart(decomposition: Decomposition) -> bool:
    """Return whether cuts can be priced with other moments than they were made with.

    Two factors can, and so can narrower MLPs, by their down map.
    """
    return {"left", "right"} <= decomposition.pieces.keys() or "down.root" in decomposition.pieces


def held_out_losses(
    decomposition: Decomposition,
    weight: Float[Tensor, "out in"],
    known: Statistics,
    damping: Damping,
) -> Float[Tensor, " cuts"]:
    """Return what each cut is predicted to cost, nats per token, without the gain of its fit.

    decomposition: of the even sequences. weight, known: of the map that is cut, or of the down map.

    Raises:
        ValueError: the statistics are not known by halves.
    """
    odd = known.odd()
    if known.even is None or odd is None:
        raise ValueError("prices on other text need the statistics of both halves")
    if "left" in decomposition.pieces:
        own, other = (
            currency_losses(decomposition, weight, one, damping) for one in (known.even, odd)
        )
        return of_all_text(own, other)
    full = len(decomposition.losses) - 1
    widths = [0, *(round(part * full) for part in WIDTHS), full]
    pairs = [
        [expected_loss(weight, _narrower(decomposition, weight, width), one, damping)
         for one in (known.even, odd)]
        for width in widths[:-1]
    ]  # fmt: skip
    more = [of_all_text(own, other) / own if own > 0 else 1.0 for own, other in pairs]
    return decomposition.losses * _interpolated(widths, [*more, more[-1]], full)


def _narrower(
    decomposition: Decomposition, weight: Float[Tensor, "out in"], width: int
) -> Float[Tensor, "out in"]:
    """Return the down map that so many neurons leave, the columns of the others being zero."""
    made = torch.zeros_like(weight)
    if width:
        pieces = {
            key.removeprefix("down."): piece
            for key, piece in decomposition.pieces.items()
            if key.startswith("down.")
        }
        module = FewerInputs(weight.shape[1], weight.shape[0], width, bias=False)
        with torch.no_grad():
            module.take(pieces)
        made[:, module.places.long()] = module.columns.detach()
    return made


def _interpolated(at: list[int], values: list[float], full: int) -> Float[Tensor, " cuts"]:
    """Return values at 0 … full on the lines between those known."""
    places = torch.arange(full + 1, dtype=torch.float64)
    known = torch.tensor(at, dtype=torch.float64)
    right = torch.searchsorted(known, places).clamp(1, len(at) - 1)
    low, high = known[right - 1], known[right]
    part = (places - low) / (high - low).clamp_min(1)
    held = torch.tensor(values, dtype=torch.float64)
    return (held[right - 1] + part * (held[right] - held[right - 1])).float()
