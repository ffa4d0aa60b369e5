"""Scales, ticks and marks: what is drawn is where the numbers say."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import report_folder
from spectrim.report.charts import how_far_off, predicted_against_measured
from spectrim.report.drawing import Drawing, Scale, tick_labels
from spectrim.report.heatmap import cells, loss_shade
from spectrim.report.sensitivity import halved
from spectrim.report.spectrum import panels

SVG = "{http://www.w3.org/2000/svg}"
POSITIVE = st.floats(1e-9, 1e9)


@given(POSITIVE, st.floats(1.01, 1e6), st.booleans())
def test_scales_keep_ends_and_order_and_ticks_lie_within(
    low: float, factor: float, log: bool
) -> None:
    scale = Scale(low, low * factor, 10.0, 110.0, log)
    assert scale(low) == pytest.approx(10) and scale(low * factor) == pytest.approx(110)
    middle = [scale(low * (1 + (factor - 1) * part)) for part in (0.1, 0.4, 0.9)]
    assert middle == sorted(middle)
    ticks = scale.ticks(5)
    assert len(ticks) <= 6
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    labels = [label for _, label in tick_labels(scale, 5)]
    assert len(set(labels)) == len(labels)


def test_values_beyond_a_scale_stay_at_its_ends() -> None:
    scale = Scale(1, 10, 0, 100, log=True)
    assert (scale(0), scale(-5), scale(1e9)) == (0, 0, 100)
    assert Scale(3, 3, 0, 100)(3) == 50


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 270, False, ["0", "50", "100", "150", "200", "250"]),
        (2.93, 3.6, False, ["3.0", "3.2", "3.4", "3.6"]),
        (-1, 1, False, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0, 2500, False, ["0", "500", "1,000", "1,500", "2,000", "2,500"]),
        (0.003, 0.8, True, ["0.003", "0.01", "0.03", "0.1", "0.3"]),
        (1e-5, 1, True, ["10⁻⁵", "10⁻⁴", "10⁻³", "10⁻²", "10⁻¹", "10⁰"]),
    ],
)
def test_ticks_are_round_and_written_alike(
    low: float, high: float, log: bool, expected: list[str]
) -> None:
    assert [label for _, label in tick_labels(Scale(low, high, 0, 1, log), 6)] == expected


def test_attributes_and_text_are_escaped() -> None:
    drawing = Drawing(10, 10, '"><script>', "x")
    drawing.text(1, 1, "<b>&")
    drawing.add("rect", {"class": '"evil"'}, hint="</title>")
    tree = ElementTree.fromstring(str(drawing.done()))
    assert tree.get("aria-label") == '"><script>'
    assert tree[0].text == "<b>&"
    assert tree[1].get("class") == '"evil"' and tree[1][0].text == "</title>"


def marks(svg: str) -> list[tuple[float, float]]:
    circles = ElementTree.fromstring(svg).iter(f"{SVG}circle")
    return [(float(one.get("cx", "")), float(one.get("cy", ""))) for one in circles]


def test_a_perfect_prediction_lies_on_the_diagonal() -> None:
    losses = [0.01, 0.1, 1.0]
    svg = predicted_against_measured(
        {"predicted": losses, "measured": losses, "budgets": [0.9, 0.8, 0.6]}
    )
    line = next(
        one
        for one in ElementTree.fromstring(str(svg)).iter(f"{SVG}line")
        if one.get("class") == "diagonal"
    )
    x1, y1, x2, y2 = (float(line.get(name, "")) for name in ("x1", "y1", "x2", "y2"))
    for x, y in marks(str(svg)):
        assert (y - y1) * (x2 - x1) == pytest.approx((y2 - y1) * (x - x1), abs=5)


@pytest.mark.parametrize(
    "prediction", [None, {}, {"predicted": [None], "measured": [1.0], "budgets": [1]}]
)
def test_no_prediction_no_figure(prediction: dict[str, list[float]] | None) -> None:
    assert predicted_against_measured(prediction) is None


def test_how_far_predictions_are_off_is_the_geometric_mean_of_ratios() -> None:
    known = {"predicted": [0.1, 0.1, 0.2], "measured": [0.1, 0.2, 1.6], "budgets": [0.9, 0.8, 0.7]}
    assert how_far_off(known) == (
        "Measured is on average 2.5 times predicted (geometric mean of 3 budgets, "
        "1.0 to 8.0 times)."
    )
    known["predicted"] += [0.0, -0.1, 0.3, None]  # type: ignore[list-item]
    known["measured"] += [0.5, 0.5, -0.2, 1.0]
    known["budgets"] += [0.6, 0.5, 0.4, 0.3]
    assert how_far_off(known) == (
        "Measured is on average 2.5 times predicted (geometric mean of 3 budgets, 4 without "
        "increase left out, 1.0 to 8.0 times)."
    )
    alone = {"predicted": [0.2], "measured": [0.1], "budgets": [0.9]}
    assert how_far_off(alone) == (
        "Measured is on average 0.50 times predicted (geometric mean of one budget)."
    )
    assert how_far_off(None) == how_far_off({"predicted": [0], "measured": [1], "budgets": [1]})
    assert how_far_off(None) == ""


def test_experts_share_a_cell_and_keep_their_sum() -> None:
    one = report_folder.decisions(1, 0.6, 0)[0]
    group = [one | {"role": f"expert{index}_down", "site": str(index)} for index in range(3)]
    (cell,) = cells(group)
    assert (cell.role, cell.sites) == ("experts down", 3)
    assert cell.stored == 3 * one["stored"] and cell.kept == one["stored"] / one["dense"]


def test_spectra_have_a_panel_per_role_a_line_per_block_and_a_dot_at_the_rank() -> None:
    chosen = report_folder.decisions(3, 0.7, 0)
    curves = report_folder.curves(3, 0)
    figures = panels(chosen, curves)
    assert len(figures) == 7
    for figure, role in zip(figures, report_folder.SHAPES, strict=True):
        tree = ElementTree.fromstring(str(figure))
        own = [one for one in chosen if one["role"] == role]
        factored = [one for one in own if one["format"] != "dense"]
        assert len(list(tree.iter(f"{SVG}path"))) == 3
        dots = [float(one.get("cx", "")) for one in tree.iter(f"{SVG}circle")]
        full = min(own[0]["out_features"], own[0]["in_features"])
        expected = [40 + one["rank"] / full * 208 for one in factored]
        assert dots == pytest.approx(expected, abs=0.01)


def test_spectra_of_methods_without_any_are_left_out() -> None:
    chosen = report_folder.decisions(1, 0.7, 0)
    assert panels(chosen, {}) == []
    assert panels(chosen, {chosen[0]["site"]: {"ranks": [1, 2], "losses": [1.0, 0.0]}}) == []
    nothing = {"ranks": [1, 2], "singular_values": [0.0, None]}
    assert panels(chosen, {chosen[0]["site"]: nothing}) == []


def test_losses_are_shaded_by_logarithm_and_summed_in_thousandths() -> None:
    one = report_folder.decisions(1, 0.6, 0)[0]
    losses = [0.5, 0.05, 0.005, 0.0]
    grid = cells([one | {"block": at, "predicted_loss": it} for at, it in enumerate(losses)])
    shade = loss_shade(grid, "title")
    assert [shade.step(cell) for cell in grid] == [10, 5, 0, 0]
    assert [shade.shown(cell) for cell in grid] == ["500", "50", "5.0", "0"]
    assert shade.summed(grid, "") == "555"


def test_sensitivity_is_the_curve_at_half_the_rank() -> None:
    one = report_folder.decisions(1, 0.6, 0)[0]  # 576 x 576
    curve = {"ranks": [100, 188, 388, 576], "losses": [3.0, 2.0, 1.0, 0.0]}
    (cell,) = halved([one], {one["site"]: curve})
    assert cell.loss == pytest.approx(1.5)
    assert "cut to half its rank, predicted loss 1.5 nats/token" in cell.hint
    protected = {"ranks": [576], "losses": [0.0]}
    assert halved([one], {one["site"]: protected}) == halved([one], {}) == []
    experts = [one | {"role": f"expert{index}_down", "site": str(index)} for index in range(3)]
    (cell,) = halved(experts, {str(index): curve for index in range(3)})
    assert (cell.loss, cell.sites, cell.role) == (pytest.approx(4.5), 3, "experts down")
