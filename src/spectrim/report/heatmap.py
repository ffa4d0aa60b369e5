"""Maps of blocks and roles: where the numbers stayed, and where the loss is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, log10
from typing import Any

from markupsafe import Markup

from spectrim.model.architectures import role_group
from spectrim.report.drawing import LETTER, Drawing
from spectrim.report.words import GAP, plain, share, stored_as

STEPS = 10
DECADES = 2
_TYPE = 11.0


@dataclass(frozen=True)
class Cell:
    """The decisions of one block and role: one, or those of all experts.

    loss: infinite where the model broke down. unsure: it may as well be none.
    """

    block: int
    role: str
    stored: int
    dense: int
    hint: str
    sites: int
    loss: float = 0.0
    unsure: bool = False

    @property
    def kept(self) -> float:
        """Return the part of the dense numbers that stays."""
        return self.stored / self.dense if self.dense else 1.0


@dataclass(frozen=True)
class Shade:
    """What a map shows: its title and style, a cell's colour and number, the sum of several."""

    title: str
    style: str
    step: Callable[[Cell], int]
    shown: Callable[[Cell], str]
    summed: Callable[[Sequence[Cell], str], str]


def kept_shade() -> Shade:
    """Return the shade of the part of the numbers that is kept, in per cent."""
    return Shade(
        "Share of numbers kept, by role and block",
        "map",
        lambda cell: STEPS if cell.kept >= 1 else min(int(cell.kept * STEPS), STEPS - 1),
        lambda cell: "all" if cell.kept >= 1 else f"{100 * cell.kept:.0f}",
        lambda group, unit: _kept(group) + unit,
    )


def loss_shade(grid: Sequence[Cell], title: str) -> Shade:
    """Return the shade of predicted losses: by logarithm, over two decades below the largest."""
    most = max((cell.loss for cell in grid if isfinite(cell.loss)), default=0.0)

    def step(cell: Cell) -> int:
        if not isfinite(cell.loss):
            return STEPS
        if cell.loss <= 0 or most <= 0:
            return 0
        part = 1 + log10(cell.loss / most) / DECADES
        return min(max(int(part * (STEPS + 1)), 0), STEPS)

    return Shade(
        title,
        "map losses",
        step,
        lambda cell: _thousandths(cell.loss),
        lambda group, unit: _thousandths(sum(cell.loss for cell in group)),
    )


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
            sum(float(one.get("predicted_loss") or 0) for one in group),
        )
        for (block, role), group in groups.items()
    ]


def heatmap(grid: list[Cell], shade: Shade, *, upright: bool) -> Markup:
    """Return the map, blocks across and roles down, or turned ``upright`` for narrow screens."""
    roles = list(dict.fromkeys(cell.role for cell in grid))
    blocks = sorted({cell.block for cell in grid})
    draw = _upright if upright else _level
    return draw(grid, shade, roles, blocks)


def _level(grid: list[Cell], shade: Shade, roles: list[str], blocks: list[int]) -> Markup:
    left = 12 + LETTER * _TYPE * max(len(role) for role in [*roles, "all"])
    wide = min(48.0, (1040 - left - 60) / len(blocks))
    bottom = 26 + 22 * (len(roles) + 1) + 8
    edge = left + wide * len(blocks)
    drawing = Drawing(edge + 60, bottom + 4, shade.title, shade.style)
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
        said = shade.summed(own, f"{GAP}%")
        drawing.text(edge + 10, down[role] + 15, said, "tick strong", "start")
    for cell in grid:
        _cell(drawing, cell, shade, (where[cell.block], down[cell.role], wide, 22.0))
    drawing.text(edge + 10, 17, "all", "tick strong", "start")
    drawing.text(left - 8, bottom - 7, "all", "tick strong", "end")
    sums = {at: shade.summed([one for one in grid if one.block == at], "") for at in blocks}
    if LETTER * 10 * max(map(len, sums.values())) <= wide:
        for block, said in sums.items():
            drawing.text(where[block] + wide / 2, bottom - 7, said, "tick strong in")
    drawing.text(edge + 10, bottom - 7, shade.summed(grid, f"{GAP}%"), "tick strong", "start")
    return drawing.done()


def _upright(grid: list[Cell], shade: Shade, roles: list[str], blocks: list[int]) -> Markup:
    longest = LETTER * _TYPE * max(len(role) for role in roles)
    wide = min(46.0, (366 - 34 - 40) / len(roles))
    slant = longest > wide  # then the roles are written upwards
    top = 16 + (longest if slant else 8)
    edge = 34 + wide * len(roles)
    high = 16.0
    drawing = Drawing(edge + 44, top + high * len(blocks) + 26, shade.title, shade.style)
    across = {role: 34 + index * wide for index, role in enumerate(roles)}
    for role in roles:
        _over(drawing, role, across[role] + wide / 2, top - 6, slant)
    drawing.text(edge + 8, top - 6, "all", "tick strong", "start")
    for index, block in enumerate(blocks):
        base = top + index * high
        drawing.text(28, base + 12, _block_name(block), anchor="end")
        own = [cell for cell in grid if cell.block == block]
        drawing.text(edge + 8, base + 12, shade.summed(own, ""), "tick strong", "start")
        for cell in own:
            _cell(drawing, cell, shade, (across[cell.role], base, wide, high))
    foot = top + high * len(blocks) + 16
    drawing.text(28, foot, "all", "tick strong", "end")
    for role in roles:
        own = [cell for cell in grid if cell.role == role]
        if wide >= 22:
            drawing.text(across[role] + wide / 2, foot, shade.summed(own, ""), "tick strong")
    drawing.text(edge + 8, foot, shade.summed(grid, ""), "tick strong", "start")
    return drawing.done()


def _over(drawing: Drawing, role: str, middle: float, base: float, slant: bool) -> None:
    if not slant:
        drawing.text(middle, base, role)
        return
    turn = f"rotate(-90 {middle + 4:.1f} {base:.1f})"
    where: dict[str, str | float] = {"x": middle + 4, "y": base, "transform": turn}
    drawing.add("text", {**where, "class": "tick", "text-anchor": "start"}, role)


def _cell(drawing: Drawing, cell: Cell, shade: Shade, box: tuple[float, ...]) -> None:
    x, y, wide, high = box
    step = shade.step(cell)
    drawing.add(
        "rect",
        {
            "x": x + 0.75,
            "y": y + 0.75,
            "width": wide - 1.5,
            "height": high - 1.5,
            "class": "unsure" if cell.unsure else f"k{step}",
            "data-sites": str(cell.sites),
        },
        hint=cell.hint,
    )
    if wide >= 20:
        style = "in" if cell.unsure else f"in k{step}-on"
        drawing.text(x + wide / 2, y + high / 2 + 3.6, shade.shown(cell), style)


def _hint(block: int, role: str, group: list[dict[str, Any]]) -> str:
    stored, dense = (sum(int(one[key]) for one in group) for key in ("stored", "dense"))
    loss = sum(float(one.get("predicted_loss") or 0) for one in group)
    part = share(stored / dense if dense else 1)
    if len(group) > 1:
        where = f"block {block}, {role}: {len(group)} sites"
    else:
        one = group[0]
        where = f"{one['site']}: {_how(one)}"
    return f"{where}, {part} of {dense:,} numbers kept, predicted loss {plain(loss, 2)} nats/token"


def _how(decision: dict[str, Any]) -> str:
    """Return how a map is stored: its rank, or its format where that has none, and its bits."""
    said = stored_as(decision)
    full = min(int(decision["out_features"]), int(decision["in_features"]))
    if decision["format"] == "dense" or decision.get("rank") is None:
        return said
    return f"rank {decision['rank']} of {full}{said.removeprefix(decision['format'])}"


def _kept(group: Sequence[Cell]) -> str:
    stored, dense = sum(cell.stored for cell in group), sum(cell.dense for cell in group)
    return f"{100 * stored / dense if dense else 100:.0f}"


def _thousandths(loss: float) -> str:
    """Return a loss in thousandths of a nat per token, in at most four characters."""
    part = 1000 * loss
    if not isfinite(loss):
        return "∞"
    if part < 0.05:
        return "0"
    return f"{part:.1f}" if part < 9.95 else f"{part:.0f}" if part < 9999.5 else ">9k"


def _block_name(block: int) -> str:
    return str(block) if block >= 0 else "ends"


def _every(count: int, wide: float, needed: float) -> int:
    return 1 if wide >= needed else max(1, round(needed / wide + 0.5))
