"""The page and the terminal's summary of a profile: whole, harmless, true to the numbers."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from spectrim.cli.arguments import parse_sizes
from spectrim.cli.console import sensitivities
from spectrim.report.profile import profile_page, totals

SVG = "{http://www.w3.org/2000/svg}"
ROLES = ("q", "down")


def row(block: int | None, role: str, measured: float | None, **changes: Any) -> dict[str, Any]:
    return {
        "cut": "alone",
        "block": block,
        "role": role,
        "site": f"model.layers.{block}.{role}",
        "size": 0.5,
        "rank": 7,
        "predicted": 0.01,
        "measured": measured,
        "metric": "loss",
    } | changes


def profile(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "model": "tiny",
        "fingerprint": "f00",
        "by": "site",
        "sizes": [0.5],
        "metric": "loss",
        "unit": "nats/token",
        "sequences": 2,
        "method": "loss_aware_svd",
        "format": "pivoted",
        "text": "text.txt",
        "calibration": "12x32",
        "split": "search",
        "length": 32,
        "predicted_tokens": 62,
        "seed": 0,
        "versions": {"torch": "2.9"},
        "dense": {"loss": 3.0, "perplexity": 20.1},
        "agreement": [agreement(len(rows), 0.9)],
        "left_dense": [],
        "rows": rows,
    } | changes


def agreement(parts: int, pearson: float | None) -> dict[str, Any]:
    return {"size": 0.5, "parts": parts, "above": 30, "pearson": pearson, "spearman": None}


def full(blocks: int = 9) -> list[dict[str, Any]]:
    """Return rows in which later blocks, and down, cost more."""
    rows = [
        row(block, role, 0.001 * (1 + block) * (1 + place))
        for block in range(blocks)
        for place, role in enumerate(ROLES)
    ]
    for way in ("first to last", "last to first"):
        rows += [row(at, "all", 0.01 * at, cut=way, rank=None, site="") for at in range(blocks)]
    return rows


def parsed(found: dict[str, Any]) -> ElementTree.Element:
    return ElementTree.fromstring(profile_page(found))


def figures(tree: ElementTree.Element, style: str) -> list[ElementTree.Element]:
    return [one for one in tree.iter(f"{SVG}svg") if one.get("class") == style]


def shown(found: dict[str, Any]) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(sensitivities(found, 0.5))
    return captured.get()


def test_totals_put_the_most_sensitive_first() -> None:
    roles = totals(full(), "role")
    assert [one["name"] for one in roles] == ["down", "q"]
    assert roles[0]["measured"] == pytest.approx(sum(0.002 * (1 + at) for at in range(9)))
    assert (roles[0]["predicted"], roles[0]["parts"]) == (pytest.approx(0.09), 9)
    blocks = totals(full(), "block")
    assert [one["name"] for one in blocks] == [f"block {at}" for at in range(8, -1, -1)]
    assert totals([row(None, "q", 0.1, site="")], "block") == []


def test_experts_are_one_role_and_both_stacks_have_their_own_blocks() -> None:
    rows = [row(0, "expert0_up", 0.1), row(0, "expert1_up", 0.2)]
    (experts,) = totals(rows, "role")
    assert (experts["name"], experts["parts"]) == ("experts up", 2)
    (map_, _) = figures(parsed(profile(rows)), "map losses")
    (cell,) = [one for one in map_.iter(f"{SVG}rect") if one.get("data-sites")]
    assert cell.get("data-sites") == "2"
    rows = [row(0, "encoder_q", 0.1), row(0, "decoder_cross_q", 0.2)]
    assert [one["name"] for one in totals(rows, "block")] == ["decoder block 0", "encoder block 0"]


def test_the_page_shows_both_maps_in_the_same_colours_and_needs_nothing_else() -> None:
    found = profile(full())
    tree, written = parsed(found), profile_page(found)
    for outside in ("<script", "src=", "href=", "url(", "@import", "<link", "<iframe", "onload"):
        assert outside not in written
    assert 'content="light dark"' in written
    predicted, measured = figures(tree, "map losses")
    for drawn in (predicted, measured):
        cells = [one for one in drawn.iter(f"{SVG}rect") if one.get("data-sites")]
        assert len(cells) == 9 * len(ROLES)
    # all were predicted alike, at a little more than half of what the worst site really costs
    assert {one.get("class") for one in predicted.iter(f"{SVG}rect")} == {"k9"}
    assert len({one.get("class") for one in measured.iter(f"{SVG}rect")}) > 5
    hints = [hint.text or "" for hint in measured.iter(f"{SVG}title")]
    assert (
        "model.layers.8.down, rank 7, 50.0\u00a0% of the numbers: "
        "predicted 0.0100, measured 0.0180 nats/token"
    ) in hints
    scatter, lines = figures(tree, "chart")
    assert len(list(scatter.iter(f"{SVG}circle"))) == 9 * len(ROLES)
    assert len(list(lines.iter(f"{SVG}path"))) == 4  # predicted and measured, either way


def test_what_broke_the_model_is_the_most_sensitive_of_all() -> None:
    rows = [row(0, "q", 0.1), row(0, "down", 0.3), row(1, "q", None), row(1, "down", 0.2)]
    assert [(one["name"], one["measured"]) for one in totals(rows, "role")] == [
        ("q", None), ("down", 0.5),
    ]  # fmt: skip
    assert [one["name"] for one in totals(rows, "block")] == ["block 1", "block 0"]
    found = profile(rows)
    out = shown(found)
    assert out.index(" q ") < out.index(" down ") and out.count("broke") == 2
    tree = parsed(found)
    _, measured = figures(tree, "map losses")
    cells = {(cell[0].text or "").split(",")[0]: cell for cell in measured.iter(f"{SVG}rect")}
    assert cells["model.layers.1.q"].get("class") == "k10"
    assert "measured broke nats" in (cells["model.layers.1.q"][0].text or "")
    assert cells["model.layers.0.down"].get("class") == "k10"  # the largest of the others
    assert cells["model.layers.0.q"].get("class") != "k10"
    assert "∞: the model broke" in " ".join(tree.itertext())
    assert "∞" not in " ".join(parsed(profile(full())).itertext())


def test_what_is_within_its_error_is_grey_where_it_was_measured() -> None:
    rows = [
        row(0, "q", 0.1, error=0.04), row(0, "down", 0.1, error=0.06), row(1, "q", -0.1, error=0.06)
    ]  # fmt: skip
    predicted, measured = figures(parsed(profile(rows)), "map losses")
    grey = [
        [(cell[0].text or "").split(",")[0] for cell in drawn.iter(f"{SVG}rect")
         if cell.get("class") == "unsure"]
        for drawn in (predicted, measured)
    ]  # fmt: skip
    assert grey == [[], ["model.layers.0.down", "model.layers.1.q"]]
    hints = [hint.text or "" for hint in measured.iter(f"{SVG}title")]
    assert any(hint.endswith("measured 0.100 ± 0.118 nats/token") for hint in hints)
    # errors on the same text may add up
    experts = [row(0, f"expert{at}_up", 0.1, error=0.04) for at in range(2)]
    (cell,) = (
        one for one in figures(parsed(profile(experts)), "map losses")[1].iter(f"{SVG}rect")
        if one.get("data-sites")
    )  # fmt: skip
    assert "measured 0.200 ± 0.157" in (cell[0].text or "") and cell.get("class") != "unsure"


def test_the_settings_say_what_was_compared() -> None:
    assert "2 x 32, 62 predicted" in profile_page(profile(full()))
    apart = profile(full(), metric="divergence", compared_tokens=31)
    assert "2 x 32, 31 of them compared" in profile_page(apart)


@pytest.mark.parametrize("by", ["role", "block"])
def test_roles_and_blocks_have_a_table_of_their_own(by: str) -> None:
    name = "q" if by == "role" else "all"
    one = row(None if by == "role" else 0, name, 0.3, site="", rank=None)
    tree = parsed(profile([one], by=by))
    headings = [heading.text for heading in tree.iter("h3")]
    assert [text for text in headings if text and text.startswith("By ")] == [
        f"By {by}, the most sensitive first"
    ]
    assert len(figures(tree, "map losses")) == (0 if by == "role" else 2)


def test_what_is_missing_falls_or_is_not_ours_does_no_harm() -> None:
    rows = [row(0, "q", None), row(0, "down", -0.02), row(1, "q", 0.0, predicted=0.0)]
    found = profile(
        rows,
        model="<b>&",
        left_dense=[{"site": "x.experts.1.up", "size": 0.5}],
        agreement=[agreement(3, None)],
    )
    tree = parsed(found)
    said = " ".join(tree.itertext())
    assert "Sensitivity of <b>&" in said and "x.experts.1.up" in said
    assert figures(tree, "chart") == []  # nothing is above zero on both axes
    assert "−0.0200" in said
    assert "–" in shown(found)  # in the place of correlations


@pytest.mark.parametrize(
    ("model", "name"),
    [("demo", "demo"), ("some/Model-1B", "some/Model-1B"), ("/home/me/models/x", "x")],
)
def test_the_title_names_the_model_and_no_path(model: str, name: str) -> None:
    title = parsed(profile(full(), model=model)).find(".//h1")
    assert title is not None and title.text == f"Sensitivity of {name}"


def test_the_terminal_shows_every_role_and_the_blocks_at_both_ends() -> None:
    out = shown(profile(full()))
    assert "tiny: increase of the loss, nats/token, each site cut alone to 50.0" in out
    assert out.index(" down ") < out.index(" q ")
    listed = [line.split()[1] for line in out.splitlines() if line.startswith(" block")]
    assert listed == ["8", "7", "6", "2", "1", "0"]
    said = "over 36 parts: 0.900 of logarithms (30 parts above 0), – of ranks"
    assert said in " ".join(out.split())
    assert said in " ".join(" ".join(parsed(profile(full())).itertext()).split())


@pytest.mark.parametrize(
    ("text", "sizes"),
    [("50%", (0.5,)), (" 75 %, 12.5%", (0.75, 0.125)), ("50%,50%,25%", (0.5, 0.25))],
)
def test_sizes_are_read_once_each(text: str, sizes: tuple[float, ...]) -> None:
    assert parse_sizes(text) == sizes
