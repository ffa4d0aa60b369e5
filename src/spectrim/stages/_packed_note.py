"""What quantize notes of a plan for the report: how many maps have which bits, at what loss."""

from __future__ import annotations

from collections import Counter
from typing import Any

from spectrim.plan import Decision, Plan


def packed_note(plan: Plan, losses: dict[str, float | None]) -> dict[str, Any]:
    """Return what is noted: how many sites have which bits, what is left, what it should cost."""
    maps = [one for one in plan.decisions if one.block >= 0]
    bits = Counter(one.rate for one in maps if one.packed)
    tables = [one for one in plan.decisions if one.block < 0 and one.bits]
    of_tables = {
        "tables": ", ".join(f"{one.role} in {one.bits} bits" for one in tables),
        "predicted_of_tables": sum(one.predicted_loss for one in tables),
    }
    return (
        {
            "bits": {f"{each:g}": bits[each] for each in sorted(bits)},
            "left": [one.site for one in maps if not one.packed],
            "without_tokens": [site for site, loss in losses.items() if loss is None],
            "predicted_loss": sum(loss for loss in losses.values() if loss is not None),
        }
        | (of_tables if tables else {})
        | _paths(maps)
    )


def _paths(maps: list[Decision]) -> dict[str, Any]:
    """Return what is noted of all packed maps where some are paths, which have many rates."""
    packed = [one for one in maps if one.packed]
    along = sum(one.trellis > 0 for one in packed)
    if not along:
        return {}
    rates = [one.rate for one in packed]
    numbers = sum(one.dense for one in packed)
    said = {
        "maps": len(packed),
        "along": along,
        "least": min(rates),
        "most": max(rates),
        "mean": sum(one.rate * one.dense for one in packed) / numbers,
    }
    return {"paths": said}
