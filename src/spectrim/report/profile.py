"""The page about a profile: which blocks and roles the loss misses most, and if that was foreseen.

It is one HTML file that opens anywhere, made from what profile.json holds.
"""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

from markupsafe import Markup

from spectrim.model.architectures import role_group
from spectrim.report import words
from spectrim.report.charts import FRAME, HEIGHT, WIDTH
from spectrim.report.drawing import Drawing, Scale, axes
from spectrim.report.heatmap import STEPS, Cell, heatmap, loss_shade
from spectrim.report.origin import without_path
from spectrim.report.page import environment
from spectrim.report.spectrum import DEPTHS
from spectrim.report.words import fixed, increase, plain, share

Row = dict[str, Any]
WAYS = ("first to last", "last to first")
REACH = 1.96  # standard errors: 95 %


def write_profile(found: dict[str, Any], target: Path) -> None:
    """Write the page of a profile; found: what profile.json holds."""
    target.write_text(profile_page(found), encoding="utf-8")


def profile_page(found: dict[str, Any]) -> str:
    """Return the page of a profile as HTML; found: what profile.json holds."""
    return (
        environment()
        .get_template("profile.html")
        .render(
            title=f"Sensitivity of {without_path(str(found['model']))}",
            found=found,
            sizes=[_of_size(found, size) for size in found["sizes"]],
            settings=_settings(found),
            steps=list(range(STEPS + 1)),
            depths=range(DEPTHS),
            words=words,
        )
    )


def totals(rows: list[Row], by: str) -> list[Row]:
    """Return parts that were cut alone, summed by "role" or "block", the most sensitive first.

    A sum of what each costs alone is what they cost together as far as they do not interact. It is
    None, which comes first, where a part alone broke the model. What is of several blocks has none,
    and comes under no block.
    """
    groups: dict[str, list[Row]] = {}
    for one in rows:
        if one["cut"] != "alone" or one[by] is None:
            continue
        groups.setdefault(role_group(one["role"]) if by == "role" else _block(one), []).append(one)
    made = [
        {
            "name": name,
            "parts": len(group),
            "predicted": _sum(group, "predicted"),
            "measured": _sum(group, "measured"),
        }
        for name, group in groups.items()
    ]
    return sorted(made, key=lambda one: -inf if one["measured"] is None else -one["measured"])


def agreed(found: Row) -> str:
    """Return how predicted and measured go together; found: an entry of "agreement"."""
    return (
        f"correlation of predicted and measured over {found['parts']} parts: "
        f"{fixed(found['pearson'])} of logarithms ({found['above']} parts above 0), "
        f"{fixed(found['spearman'])} of ranks"
    )


def _sum(group: list[Row], name: str) -> float | None:
    """Return the sum over rows, None where one of them has no number."""
    found = [one[name] for one in group]
    return None if None in found else sum(found)


def _block(row: Row) -> str:
    side = next((one for one in ("encoder ", "decoder ") if row["role"].startswith(one[:-1])), "")
    return f"{side}block {row['block']}"


def _of_size(found: dict[str, Any], size: float) -> Row:
    rows = [one for one in found["rows"] if one["size"] == size]
    alone = [one for one in rows if one["cut"] == "alone"]
    return {
        "size": size,
        "maps": [] if found["by"] == "role" else _maps(alone, found["unit"]),
        "scatter": _scatter(alone, found["unit"]),
        "cumulative": _cumulative(rows, found["unit"]),
        "roles": [] if found["by"] == "block" else totals(alone, "role"),
        "blocks": [] if found["by"] == "role" else totals(alone, "block"),
        "agreed": agreed(next(one for one in found["agreement"] if one["size"] == size)),
        "broke": any(one["measured"] is None for one in alone),
    }


def _maps(rows: list[Row], unit: str) -> list[tuple[str, Markup]]:
    """Return the map of what was predicted and that of what was measured, in the same colours."""
    grids = {name: _cells(rows, name, unit) for name in ("predicted", "measured")}
    both = [cell for grid in grids.values() for cell in grid]
    return [
        (name, heatmap(grid, loss_shade(both, f"{name}, by role and block"), upright=True))
        for name, grid in grids.items()
    ]


def _cells(rows: list[Row], name: str, unit: str) -> list[Cell]:
    groups: dict[tuple[int, str], list[Row]] = {}
    for one in rows:
        groups.setdefault((one["block"], role_group(one["role"])), []).append(one)
    return [
        Cell(block, role, 0, 0, _hint(group, unit), len(group),
             inf if (loss := _sum(group, name)) is None else loss,
             name == "measured" and _within_error(group))
        for (block, role), group in groups.items()
    ]  # fmt: skip


def _reach(group: list[Row]) -> float | None:
    """Return half the 95 % interval of a measured sum, at most: errors on one text may add up."""
    error = None if any(one.get("error") is None for one in group) else _sum(group, "error")
    return None if error is None else REACH * error


def _within_error(group: list[Row]) -> bool:
    measured, reach = _sum(group, "measured"), _reach(group)
    return measured is not None and reach is not None and abs(measured) <= reach


def _hint(group: list[Row], unit: str) -> str:
    first = group[0]
    where = first["site"] or f"block {first['block']}, {role_group(first['role'])}"
    if len(group) > 1:
        where = f"block {first['block']}, {role_group(first['role'])}: {len(group)} sites"
    elif first["rank"] is not None:
        where += f", rank {first['rank']}"
    sums = [f"{name} {increase(_sum(group, name))}" for name in ("predicted", "measured")]
    reach = "" if (half := _reach(group)) is None else f" ± {plain(half)}"
    return f"{where}, {share(first['size'])} of the numbers: {', '.join(sums)}{reach} {unit}"


def _scatter(rows: list[Row], unit: str) -> Markup | None:
    """Return measured over predicted, a point for each part where both are above zero."""
    shown = [one for one in rows if min(one["predicted"] or 0, one["measured"] or 0) > 0]
    if not shown:
        return None
    known = [one[name] for one in shown for name in ("predicted", "measured")]
    low, high = min(known) / 1.35, max(known) * 1.35
    drawing = Drawing(WIDTH, HEIGHT, "Predicted against measured, part by part", "chart")
    x = Scale(low, high, FRAME.left, FRAME.right, log=True)
    y = Scale(low, high, FRAME.bottom, FRAME.top, log=True)
    axes(drawing, FRAME, x, y, (f"predicted increase, {unit}", f"Measured increase, {unit}"))
    drawing.line((x(low), y(low), x(high), y(high)), "diagonal")
    for one in shown:
        where = {"cx": x(one["predicted"]), "cy": y(one["measured"]), "r": 3.0}
        drawing.add("circle", {**where, "class": "dot m1"}, hint=_hint([one], unit))
    return drawing.done()


def _cumulative(rows: list[Row], unit: str) -> Markup | None:
    """Return increases over how many blocks are cut, from either end."""
    lines = {way: [one for one in rows if one["cut"] == way] for way in WAYS}
    known = [
        one[name] for line in lines.values() for one in line for name in ("predicted", "measured")
        if one[name] is not None
    ]  # fmt: skip
    if not known:
        return None
    drawing = Drawing(WIDTH, HEIGHT, "Increase over the number of blocks cut", "chart")
    x = Scale(0, max(map(len, lines.values())), FRAME.left, FRAME.right)
    y = Scale(min(*known, 0.0), max(known) * 1.05, FRAME.bottom, FRAME.top)
    axes(drawing, FRAME, x, y, ("blocks cut", f"Increase, {unit}"))
    for tone, line in enumerate(lines.values(), start=1):
        for name in ("predicted", "measured"):
            places = [
                (x(at), y(one[name])) for at, one in enumerate(line, start=1)
                if one[name] is not None
            ]  # fmt: skip
            if places:
                drawing.path(places, f"line {name} m{2 * tone - 1}")
    return drawing.done()


def _settings(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return how the profile was obtained, as (name, value) in a fixed order."""
    versions = ", ".join(f"{name} {one}" for name, one in found["versions"].items())
    read = f"{found['sequences']} x {found['length']}, "
    compared, predicted = found.get("compared_tokens"), found["predicted_tokens"]
    read += f"{compared:,} of them compared" if compared else f"{predicted:,} predicted"
    cut = ", ".join(share(size) for size in found["sizes"])
    return [
        ("Model", str(found["model"])),
        ("Fingerprint", str(found["fingerprint"])),
        ("Text", str(found["text"])),
        ("Measured on", f"the {found['split']} split: {read}"),
        ("Calibration", f"{found['calibration']} tokens"),
        ("Cut at a time", f"one {found['by']}, to {cut} of its numbers"),
        ("Method, format", f"{found['method']}, {found['format']}"),
        ("Dense", ", ".join(f"{name} {plain(one, 5)}" for name, one in found["dense"].items())),
        ("Seed", str(found["seed"])),
        ("Versions", versions),
    ]
