"""The same share of Σσ, not of its squares, at every site: the rule "auto" of SFSD's weight SVD."""

from __future__ import annotations

from spectrim.allocators import Measure
from spectrim.allocators.energy import by_share
from spectrim.curve import Curve


def spectral_mass(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return for every curve the smallest cut whose share of Σσ reaches a common threshold.

    This is the rank rule "auto:v" in the code of SFSD (2405.13039), with v as high as the budget
    allows. Beside `energy` it gives more to sites whose singular values fall fast. A curve of
    several methods or sites has no singular values; where there is one, the share of every curve
    is 1 - (loss / loss of the smallest cut)^½.
    budget: in the unit of the curves' sizes. measure: not needed.
    """
    return by_share(curves, budget, power=1)
