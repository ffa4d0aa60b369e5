"""The global allocation, on curves corrected by true losses, role by role and third by third."""

from __future__ import annotations

from dataclasses import replace

from spectrim.allocators import Measure, needed
from spectrim.allocators._spending import dense, spent
from spectrim.allocators.global_ import global_
from spectrim.allocators.uniform import uniform
from spectrim.curve import Curve

MEASURES = True
ROUNDS = 2
THIRDS = 3
MOST = 10.0  # a correction beyond this, or below its inverse, is noise of a short text


def measured(curves: list[Curve], budget: float, measure: Measure | None = None) -> list[int]:
    """Return the global choice after correcting the curves by the true loss, or a better one seen.

    The predicted losses are second-order estimates (docs/methods.md, section 1); where they drift,
    they do so by role and by depth. For every role and third of the depth, only its sites are cut,
    as the global choice has them (or the uniform one, where that leaves them dense); the measured
    rise over the predicted one multiplies their curves, and the global choice is made again. This
    is done twice, the second time around the corrected choice. Of the choices made, the first
    included, the one with the least measured loss is returned, so that it is never worse than
    `global` on the search split.

    Evaluations: at most two for every role and third, one of the dense model, and three.
    budget: in the unit of the curves' sizes.

    Raises:
        SpectrimError: there is nothing to measure with.
    """
    measure = needed(measure, "measured")
    if budget >= spent(curves, dense(curves)):
        return dense(curves)
    even = uniform(curves, budget)
    seen = [global_(curves, budget)]
    for _ in range(ROUNDS):
        scales = _scales(curves, seen[-1], even, measure)
        pairs = zip(curves, scales, strict=True)
        corrected = [replace(curve, losses=curve.losses * scale) for curve, scale in pairs]
        chosen = global_(corrected, budget)
        if chosen in seen:
            break
        seen.append(chosen)
    return min(seen, key=measure) if len(seen) > 1 else seen[0]


def _scales(
    curves: list[Curve], chosen: list[int], even: list[int], measure: Measure
) -> list[float]:
    """Return for every curve how many times its predicted loss it truly costs."""
    whole = dense(curves)
    before = measure(whole)
    scales = [1.0] * len(curves)
    for members in _groups(curves):
        cuts = {at: even[at] if chosen[at] == whole[at] else chosen[at] for at in members}
        predicted = sum(float(curves[at].losses[cut]) for at, cut in cuts.items())
        if predicted <= 0:
            continue
        rise = measure([cuts.get(at, last) for at, last in enumerate(whole)]) - before
        for at in members:
            scales[at] = min(max(rise / predicted, 1 / MOST), MOST)
    return scales


def _groups(curves: list[Curve]) -> list[list[int]]:
    """Return which curves share a role and a third of the depth, the deepest third first.

    What lies in front of a cut need not be run again, so that this order is the quickest.
    """
    blocks = 1 + max(curve.site.block for curve in curves)
    groups: dict[tuple[int, str], list[int]] = {}
    for at, curve in enumerate(curves):
        third = curve.site.block * THIRDS // blocks
        groups.setdefault((-third, curve.site.role), []).append(at)
    return [groups[key] for key in sorted(groups)]
