"""What each map would lose were all cut alike: how sensitive the blocks and roles are."""

from __future__ import annotations

from math import isfinite
from typing import Any

from spectrim.model.architectures import role_group
from spectrim.report.heatmap import Cell
from spectrim.report.words import plain


def halved(decisions: list[dict[str, Any]], curves: dict[str, Any]) -> list[Cell]:
    """Return the predicted loss of every block and role, each map cut to half its full rank.

    Experts of one block are taken together. Maps without a curve, such as protected ones, are left
    out.
    """
    groups: dict[tuple[int, str], list[tuple[dict[str, Any], float]]] = {}
    for one in decisions:
        loss = _at_half(one, curves.get(one["site"]) or {})
        if loss is not None:
            place = int(one["block"]), role_group(one["role"])
            groups.setdefault(place, []).append((one, loss))
    return [_cell(place, group) for place, group in groups.items()]


def _at_half(decision: dict[str, Any], curve: dict[str, Any]) -> float | None:
    """Return the loss at half the full rank, between the two nearest points that are known."""
    half = min(int(decision["out_features"]), int(decision["in_features"])) / 2
    known = [
        (float(rank), float(loss))
        for rank, loss in zip(curve.get("ranks") or [], curve.get("losses") or [], strict=False)
        if rank is not None and loss is not None and isfinite(loss)
    ]
    if not known or not known[0][0] <= half <= known[-1][0]:
        return None
    for (low, before), (high, after) in zip(known, known[1:], strict=False):
        if low <= half <= high and high > low:
            return max(before + (after - before) * (half - low) / (high - low), 0.0)
    return max(known[0][1], 0.0)


def _cell(place: tuple[int, str], group: list[tuple[dict[str, Any], float]]) -> Cell:
    block, role = place
    loss = sum(one for _, one in group)
    dense = sum(int(one["dense"]) for one, _ in group)
    where = f"block {block}, {role}: {len(group)} sites" if len(group) > 1 else group[0][0]["site"]
    hint = f"{where}: cut to half its rank, predicted loss {plain(loss, 2)} nats/token"
    return Cell(block, role, 0, dense, hint, len(group), loss)
