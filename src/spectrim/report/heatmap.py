"""Where the numbers stayed: a map of blocks and roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from spectrim.report.drawing import LETTER, Drawing
from spectrim.report.words import GAP, plain, role_group, share

STEPS = 10
_TYPE = 11.0


@dataclass(frozen=True)
class Cell:
    """The decisions of one block and role: one, or those of all experts."""

    block: int
    role: str
    stored: int
    dense: int
    hint: str
    sites: int

    @property
    def kept(self) -> float:
        """Return the part of the dense numbers that stays."""
        return self.stored / self.dense if self.dense else 1.0


def cells(decisions: list[dict[str, Any]]) -> list[Cell]:
    """Return a cell for every block and role, experts of one block taken together."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for one in decisions:
        role = role_group(one["role"])
        groups.setdefault((int(one["block"]), role), []).append(one)
    return [
        Cell(
            block,
            role,
            sum(int(one["stored"]) for one in group),
            sum(int(one["dense"]) for one in group),
            _hint(block, role, group),
            len(group),
        )
        for (block, role), group in groups.items()
    ]


def heatmap(decisions: list[dict[str, Any]], *, upright: bool) -> Markup:
    """Return the map, blocks across and roles down, or turned ``upright`` for narrow screens."""
    grid = cells(decisions)
    roles = list(dict.fromkeys(cell.role for cell in grid))
    blocks = sorted({cell.block for cell in grid})
    return _upright(grid, roles, blocks) if upright else _level(grid, roles, blocks)


def _level(grid: list[Cell], roles: list[str], blocks: list[int]) -> Markup:
    left = 12 + LETTER * _TYPE * max(len(role) for role in [*roles, "all"])
    wide = min(48.0, (1040 - left - 60) / len(blocks))
    bottom = 26 + 22 * (len(roles) + 1) + 8
    edge = left + wide * len(blocks)
    drawing = Drawing(edge + 60, bottom + 4, "Share of numbers kept, by role and block", "map")
    where = {block: left + index * wide for index, block in enumerate(blocks)}
    down = {role: 26 + index * 22 for index, role in enumerate(roles)}
    skip = _every(len(blocks), wide, 22)
    for index, block in enumerate(blocks):
        if index % skip == 0:
            drawing.text(where[block] + wide / 2, 17, _block_name(block))
    drawing.text(left - 8, 17, "block", anchor="end")
    for role in roles:
        drawing.text(left - 8, down[role] + 15, role, anchor="end")
        own = [cell for cell in grid if cell.role == role]
        drawing.text(edge + 10, down[role] + 15, _kept(own), "tick strong", "start")
    for cell in grid:
        box = (where[cell.block], down[cell.role], wide, 22.0)
        _cell(drawing, cell, box)
    drawing.text(edge + 10, 17, "all", "tick strong", "start")
    drawing.text(left - 8, bottom - 7, "all", "tick strong", "end")
    for block in blocks:
        own = [cell for cell in grid if cell.block == block]
        if wide >= 20:
            drawing.text(where[block] + wide / 2, bottom - 7, _kept(own, ""), "tick strong")
    drawing.text(edge + 10, bottom - 7, _kept(grid), "tick strong", "start")
    return drawing.done()


def _upright(grid: list[Cell], roles: list[str], blocks: list[int]) -> Markup:
    longest = LETTER * _TYPE * max(len(role) for role in roles)
    wide = min(46.0, (366 - 34 - 40) / len(roles))
    slant = longest > wide  # then the roles are written upwards
    top = 16 + (longest if slant else 8)
    edge = 34 + wide * len(roles)
    high = 16.0
    drawing = Drawing(edge + 44, top + high * len(blocks) + 26, "Share of numbers kept", "map")
    across = {role: 34 + index * wide for index, role in enumerate(roles)}
    for role in roles:
        middle = across[role] + wide / 2
        if slant:
            spot = {"x": middle + 4, "y": top - 6, "class": "tick", "text-anchor": "start"}
            turn = f"rotate(-90 {middle + 4:.1f} {top - 6:.1f})"
            drawing.add("text", {**spot, "transform": turn}, role)
        else:
            drawing.text(middle, top - 6, role)
    drawing.text(edge + 8, top - 6, "all", "tick strong", "start")
    for index, block in enumerate(blocks):
        base = top + index * high
        drawing.text(28, base + 12, _block_name(block), anchor="end")
        own = [cell for cell in grid if cell.block == block]
        drawing.text(edge + 8, base + 12, _kept(own, ""), "tick strong", "start")
        for cell in own:
            _cell(drawing, cell, (across[cell.role], base, wide, high))
    foot = top + high * len(blocks) + 16
    drawing.text(28, foot, "all", "tick strong", "end")
    for role in roles:
        own = [cell for cell in grid if cell.role == role]
        if wide >= 22:
            drawing.text(across[role] + wide / 2, foot, _kept(own, ""), "tick strong")
    drawing.text(edge + 8, foot, _kept(grid, ""), "tick strong", "start")
    return drawing.done()


def _cell(drawing: Drawing, cell: Cell, box: tuple[float, float, float, float]) -> None:
    x, y, wide, high = box
    whole = cell.kept >= 1
    step = STEPS if whole else min(int(cell.kept * STEPS), STEPS - 1)
    drawing.add(
        "rect",
        {
            "x": x + 0.75,
            "y": y + 0.75,
            "width": wide - 1.5,
            "height": high - 1.5,
            "class": f"k{step}",
            "data-sites": str(cell.sites),
        },
        hint=cell.hint,
    )
    if wide >= 20:
        shown = "all" if whole else f"{100 * cell.kept:.0f}"
        drawing.text(x + wide / 2, y + high / 2 + 3.6, shown, f"in k{step}-on")


def _hint(block: int, role: str, group: list[dict[str, Any]]) -> str:
    stored, dense = (sum(int(one[key]) for one in group) for key in ("stored", "dense"))
    loss = sum(float(one.get("predicted_loss") or 0) for one in group)
    part = share(stored / dense if dense else 1)
    if len(group) > 1:
        where = f"block {block}, {role}: {len(group)} sites"
    else:
        one = group[0]
        full = min(int(one["out_features"]), int(one["in_features"]))
        how = "dense" if one["format"] == "dense" else f"rank {one['rank']} of {full}"
        where = f"{one['site']}: {how}"
    return f"{where}, {part} of {dense:,} numbers kept, predicted loss {plain(loss, 2)} nats/token"


def _kept(group: list[Cell], sign: str = f"{GAP}%") -> str:
    stored, dense = sum(cell.stored for cell in group), sum(cell.dense for cell in group)
    return f"{100 * stored / dense if dense else 100:.0f}{sign}"


def _block_name(block: int) -> str:
    return str(block) if block >= 0 else "ends"


def _every(count: int, wide: float, needed: float) -> int:
    return 1 if wide >= needed else max(1, round(needed / wide + 0.5))
