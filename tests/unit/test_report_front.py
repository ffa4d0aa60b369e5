"""Quality against size and speed: who is on the front, who beats whom, what is drawn where."""

from __future__ import annotations

import copy
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import report_folder
from spectrim.report import points, tasks
from spectrim.report.charts import FRAME
from spectrim.report.folder import Output, read, rows
from spectrim.report.front import quality_front
from spectrim.report.page import page
from spectrim.report.points import ON_GRID, Point
from spectrim.report.runs import merged

SVG = "{http://www.w3.org/2000/svg}"
EARLIER = "best earlier run, monday"
COSTS = st.lists(st.tuples(st.floats(1, 1e9), st.floats(0.1, 9)), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Output:
    folder = tmp_path_factory.mktemp("outputs") / "small"
    return read(report_folder.write(folder, suite=True))


def point(label: str, size: float, loss: float, speed: float | None = None) -> Point:
    style = label if label in ("dense", "small") else "baseline"
    return Point(label, style, size, loss, speed)


@given(COSTS)
def test_the_front_is_all_that_nothing_beats(costs: list[tuple[float, float]]) -> None:
    found = [point(str(place), *cost) for place, cost in enumerate(costs)]
    best = points.front(found)
    assert best and [one.size for one in best] == sorted(one.size for one in best)
    assert [one.loss for one in best] == sorted((one.loss for one in best), reverse=True)
    for one in found:
        beaten = any(
            (other.size <= one.size and other.loss <= one.loss)
            and (other.size < one.size or other.loss < one.loss)
            for other in found
        )
        assert (one in best) != beaten


def test_faster_is_cheaper_and_what_was_not_timed_is_left_out() -> None:
    slow, fast = point("a", 1, 2.0, 10), point("b", 1, 3.0, 20)
    beaten, untimed = point("c", 1, 3.5, 15), point("d", 1, 1.0)
    assert points.front([slow, fast, beaten, untimed], "speed") == [fast, slow]
    assert quality_front([untimed], "speed") is None


@pytest.mark.parametrize(
    ("size", "loss", "expected"),
    [
        (70e6, 2.95, "int4 is smaller and loses less: 70.0 MB at 2.950 nats/token"),
        (100e6, 2.95, "int4 is as small and loses less:"),
        (70e6, 3.1, "int4 is smaller and loses no more:"),
        (70e6, 3.2, "Nothing here of at most its bytes loses less than small: not int4."),
        (110e6, 2.95, "Nothing here has as few bytes as small to compare it with."),
    ],
)
def test_a_baseline_that_beats_the_smaller_model_is_said_to(
    size: float, loss: float, expected: str
) -> None:
    found = [point("dense", 2e8, 2.9), point("small", 1e8, 3.1), point("int4", size, loss)]
    (said,) = points.verdicts(found)
    assert said.replace("\u00a0", " ").startswith(expected)
    if "Nothing" not in expected:
        assert said.replace("\u00a0", " ").endswith(
            "against 100.0 MB at 3.100 nats/token of small."
        )


def test_nothing_is_said_without_rivals() -> None:
    assert points.verdicts([point("dense", 2, 2.9), point("small", 1, 3.1)]) == []
    assert points.verdicts([point("dense", 2, 2.9), point("int4", 1, 3.1)]) == []


def test_the_grid_is_told_beside_four_bits_alone(small: Output) -> None:
    known = {one.label: points.remark(one, True) for one in points.points(small.scores)}
    assert known["dense"] == known["small"] == known["int8"] == "" and known["int4"] == ON_GRID
    held = Point("int4", "baseline", 1.0, 2.0, on_disk=False)
    assert points.remark(held, False) == "Bytes are those in memory."
    assert points.on_grid(small.scores)
    scores = copy.deepcopy(small.scores)
    scores["rows"][0]["four_bit_grid"]["value"] = 0.2
    assert not points.on_grid(scores)


def test_the_best_earlier_run_is_a_point_where_there_is_one(small: Output) -> None:
    one = points.points(small.scores)[-1]
    assert (one.label, one.size, one.loss, one.over) == (EARLIER, 221_000_000, 3.17, 0.18)
    nameless = points.points(small.scores | {"earlier": {"bytes_of_weights": 5, "loss": 2.0}})[-1]
    assert nameless.label == "best earlier run"
    for nothing in (None, {}, {"bytes_of_weights": None, "loss": 2.0}):
        found = points.points(small.scores | {"earlier": nothing})
        assert [point.label for point in found] == ["dense", "small", "int8", "int4"]


def drawn(svg: object) -> ElementTree.Element:
    return ElementTree.fromstring(str(svg))


def test_more_loss_is_higher_and_more_bytes_further_right(small: Output, tmp_path: Path) -> None:
    poor = read(report_folder.write(tmp_path / "poor", blocks=2, keep=0.5, excess=0.9))
    found, left_out = points.known(small, [poor])
    assert left_out == []
    assert [one.label for one in found] == ["dense", "small", "int8", "int4", EARLIER, "poor"]
    tree = drawn(quality_front(found))
    circles = [
        (float(one.get("cx", "")), float(one.get("cy", ""))) for one in tree.iter(f"{SVG}circle")
    ]
    _, box = list(tree.iter(f"{SVG}rect"))
    dense, own = circles
    other = float(box.get("x", "")) + 4, float(box.get("y", "")) + 4
    assert FRAME.left < other[0] < own[0] < dense[0] < FRAME.right
    assert FRAME.top < other[1] < own[1] < dense[1] < FRAME.bottom
    sizes = [one.size for one in found if one.style in ("dense", "small")]
    part = (own[0] - FRAME.left) / (dense[0] - FRAME.left)
    assert part == pytest.approx(sizes[1] / sizes[0], abs=1e-3)
    styles = [one.get("class") for one in tree.iter(f"{SVG}path")]
    assert styles == ["front", "mark baseline", "mark baseline"]


def test_the_line_passes_through_the_front(small: Output) -> None:
    found = points.points(small.scores)
    tree = drawn(quality_front(found))
    line = next(one for one in tree.iter(f"{SVG}path") if one.get("class") == "front")
    (dense, _) = [one for one in tree.iter(f"{SVG}circle")]
    assert f"{dense.get('cx')} {dense.get('cy')}" in line.get("d", "")
    assert [one.label for one in points.front(found)] == ["int4", "int8", "dense"]


def test_labels_in_a_crowd_do_not_cover_each_other(small: Output, tmp_path: Path) -> None:
    crowd = [
        read(report_folder.write(tmp_path / f"nearby-{index}", blocks=2, excess=0.14 + index / 50))
        for index in range(12)
    ]
    tree = drawn(quality_front(points.known(small, crowd)[0]))
    boxes = []
    for one in tree.iter(f"{SVG}text"):
        if one.get("class") == "point":
            wide = 0.62 * 11 * len(str(one.text))
            x, y = float(one.get("x", "")), float(one.get("y", ""))
            left = x - {"start": 0, "middle": 0.5, "end": 1}[one.get("text-anchor", "")] * wide
            boxes.append((left, y - 11, left + wide, y + 3))
    assert len(boxes) > 4
    for index, a in enumerate(boxes):
        for b in boxes[index + 1 :]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def test_runs_stand_beside_each_other_where_their_texts_are_the_same(
    small: Output, tmp_path: Path
) -> None:
    other = read(report_folder.write(tmp_path / "small", blocks=2, excess=0.5, suite=True))
    far = copy.deepcopy(other)
    far.scores["settings"]["text"] = "another"
    found = rows(merged(small, [other, far]))
    assert list(found) == ["dense", "small", "small (2)", "small (3)"]
    assert found["small (2)"]["loss"]["value"] == pytest.approx(2.99 + 0.5)
    assert found["small (2)"]["tasks"]["BoolQ"] == other.scores["rows"][1]["tasks"]["BoolQ"]
    assert "loss" not in found["small (3)"] and found["small (3)"]["tasks"] == {}
    assert found["small (3)"]["numbers"] == other.scores["rows"][1]["numbers"]
    assert points.known(small, [other, far])[1] == ["small (3)"]


def test_tasks_that_were_asked_with_other_limits_stand_apart(small: Output, tmp_path: Path) -> None:
    other = read(report_folder.write(tmp_path / "quick", blocks=2, suite=True))
    for row in other.scores["rows"][:2]:
        for score in row["tasks"]["BoolQ"].values():
            score |= {"n": 40, "value": 0.25}
    found = rows(merged(small, [other]))
    dense, own, quick = (found[label]["tasks"] for label in ("dense", "small", "quick"))
    assert "BoolQ" not in {*dense, *own, *quick} and "ARC-Easy" in quick
    assert set(own) - set(quick) == {"BoolQ, n = 200"}
    assert set(quick) - set(own) == {"BoolQ, n = 40"}
    # Beside each is what the dense model made of the same items.
    assert dense["BoolQ, n = 200"] == small.scores["rows"][0]["tasks"]["BoolQ"]
    assert dense["BoolQ, n = 40"] == other.scores["rows"][0]["tasks"]["BoolQ"]
    assert list(dense)[:4] == ["ARC-Easy", "BoolQ, n = 200", "BoolQ, n = 40", "SQuAD"]
    said = page(small, [other])
    assert "BoolQ, n = 40" in said and "did not ask all tasks with the same limit" in said
    lines = {(line.task, line.name): line for line in tasks.lines(merged(small, [other]))}
    line = lines["BoolQ, n = 40", "accuracy"]
    assert (line.cells[1], line.change, line.count) == ("", "", "40")


def test_tasks_that_were_asked_alike_stand_together(small: Output) -> None:
    found = rows(merged(small, [small]))
    assert found["dense"]["tasks"] == small.scores["rows"][0]["tasks"]
    assert "did not ask all tasks with the same limit" not in page(small, [small])


def test_runs_of_another_dense_model_do_not_compare(small: Output) -> None:
    other = copy.deepcopy(small)
    assert points.comparable(small, other)
    other.plan["fingerprint"] = "another"
    assert not points.comparable(small, other)
    other.plan.clear()
    assert points.comparable(small, other)  # then the names are all there is
    other.scores["model"] = "another"
    assert not points.comparable(small, other)
