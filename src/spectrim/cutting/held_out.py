"""What cuts cost on text that they were not fitted to: even sequences choose, odd ones price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spectrim.cutting.currency import currency_losses
from spectrim.formats.fewer_inputs import FewerInputs
from spectrim.methods import Decomposition
from spectrim.walk.moments import Damping, expected_loss, of_all_text
from spectrim.walk.statistics import Statistics

PARTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the full rank: where prices of some cuts stand for others
Maps = Mapping[str, Float[Tensor, "out in"]]
"""Dense matrices by role, the first one's first; by "" where a method takes maps one by one."""


class Prices(NamedTuple):
    """What the cuts of a fit to the even sequences lose, nats per token: on these, on the odd."""

    own: Float[Tensor, " cuts"]
    other: Float[Tensor, " cuts"]

    def of_all_text(self) -> Float[Tensor, " cuts"]:
        """Return what cuts that are fitted to all sequences will cost."""
        return of_all_text(self.own, self.other)

    def factors(self) -> Float[Tensor, " parts"]:
        """Return how many times that is what such a fit says of itself, at the PARTS.

        Its error on what it has seen is as far below the truth as its price is above.
        """
        full = len(self.own) - 1
        at = [round(part * full) for part in PARTS]
        fitted, true = of_all_text(self.other, self.own)[at], self.of_all_text()[at]
        return torch.where(fitted > 0, true / fitted, 1.0)


def priced_apart(decomposition: Decomposition) -> bool:
    """Return whether cuts can be priced with other moments than they were made with.

    Two factors can, also such as share one, and so can maps that read less of their input.
    """
    return any(name.rpartition(".")[2] in ("left", "root") for name in decomposition.pieces)


def held_out_prices(
    decomposition: Decomposition,
    maps: Maps,
    known: Mapping[str, Statistics],
    damping: Damping,
) -> Prices:
    """Return what every cut is predicted to lose on either half of the text.

    decomposition: of the even sequences. known: by role too, as the maps.

    Raises:
        ValueError: the statistics are not known by halves.
    """
    halves: tuple[dict[str, Statistics], ...] = ({}, {})
    for role, one in known.items():
        for half, part in zip(halves, (one.even, one.odd()), strict=True):
            if part is None:
                raise ValueError("prices on other text need the statistics of both halves")
            half[role] = part
    of = _of_narrower if _reader(decomposition) is not None else _of_factors
    return Prices(*(of(decomposition, maps, half, damping) for half in halves))


def scaled(
    losses: Float[Tensor, " cuts"],
    parts: Float[Tensor, " cuts"],
    known: list[Float[Tensor, " parts"]],
) -> Float[Tensor, " cuts"]:
    """Return losses on what a fit has seen times the median factor of other fits at such a part.

    parts: of the full rank, of each cut. known: the factors of the others; 1 where there are none.
    """
    if not known:
        return losses
    median = torch.stack(known).double().quantile(0.5, dim=0)
    factors = _interpolated(torch.tensor(PARTS).double(), median, parts.double())
    return (losses * factors).to(losses.dtype)


def _of_factors(
    decomposition: Decomposition, maps: Maps, half: Mapping[str, Statistics], damping: Damping
) -> Float[Tensor, " cuts"]:
    """Return what cuts of two factors lose, summed over the maps that share the right one."""
    pieces, total = decomposition.pieces, torch.zeros(len(decomposition.losses))
    (right,) = (one for name, one in pieces.items() if name.rpartition(".")[2] == "right")
    for role, matrix in maps.items():
        left = pieces[f"{role}.left" if role else "left"]
        own = Decomposition(decomposition.ranks, total, {"left": left, "right": right})
        total = total + currency_losses(own, matrix, half[role], damping)
    return total


def _of_narrower(
    decomposition: Decomposition, maps: Maps, half: Mapping[str, Statistics], damping: Damping
) -> Float[Tensor, " cuts"]:
    """Return what widths lose by the map that reads them, priced at some and told from the fit."""
    role = _reader(decomposition)
    assert role is not None
    full, fitted, matrix = len(decomposition.losses) - 1, decomposition.losses, maps[role]
    widths = torch.tensor([0, *(round(part * full) for part in PARTS)])
    lost = torch.tensor([
        expected_loss(matrix, _narrower(decomposition, role, matrix, int(width)), half[role],
                      damping)
        for width in widths
    ])  # fmt: skip
    more = torch.where(fitted[widths] > 0, lost / fitted[widths], 1.0)
    places = torch.arange(full + 1).double()
    return (fitted * _interpolated(widths.double(), more.double(), places)).float()


def _reader(decomposition: Decomposition) -> str | None:
    """Return the role of the map that reads what a narrower one delivers."""
    roles = (name.rpartition(".") for name in decomposition.pieces)
    return next((role for role, _, piece in roles if piece == "root"), None)


def _narrower(
    decomposition: Decomposition, role: str, weight: Float[Tensor, "out in"], width: int
) -> Float[Tensor, "out in"]:
    """Return the map that the kept part of the inputs leaves, the columns of the others zero.

    width: in the unit of ranks. Where the inputs are turned before they are cut, in their own
    coordinates.
    """
    made = torch.zeros_like(weight)
    if not width:
        return made
    pieces = {
        name.removeprefix(f"{role}."): piece
        for name, piece in decomposition.pieces.items()
        if name.startswith(f"{role}.")
    }
    times = weight.shape[1] // (len(decomposition.losses) - 1)
    module = FewerInputs(weight.shape[1], weight.shape[0], times * width, bias=False)
    with torch.no_grad():
        module.take(pieces)
    made[:, module.places.long()] = module.columns.detach()
    return _turned_back(decomposition, made, times)


def _turned_back(
    decomposition: Decomposition, made: Float[Tensor, "out in"], times: int
) -> Float[Tensor, "out in"]:
    """Return columns in the coordinates in which heads deliver, M T with T as it is stored."""
    turns = [name for name in decomposition.pieces if name.endswith(".turn")]
    if not turns:
        return made
    order: Int[Tensor, " all"] = decomposition.pieces[turns[0].replace(".turn", ".order")]
    rows = decomposition.pieces[turns[0]][order.argsort()]
    turn = rows.unflatten(0, (-1, rows.shape[1])).repeat_interleave(times, 0)
    parts = made.unflatten(1, (len(turn), -1))  # [out, heads, dim]
    return torch.einsum("ohd,hde->ohe", parts, turn).flatten(1)


def _interpolated(
    at: Float[Tensor, " known"], values: Float[Tensor, " known"], places: Float[Tensor, " some"]
) -> Float[Tensor, " some"]:
    """Return values on the lines between those known, and beyond them the last ones."""
    right = torch.searchsorted(at, places).clamp(1, len(at) - 1)
    low, high = at[right - 1], at[right]
    part = ((places - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return values[right - 1] + part * (values[right] - values[right - 1])
