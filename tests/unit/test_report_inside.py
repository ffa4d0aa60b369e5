"""Cosine by block and attention maps: what is drawn is what was measured."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import report_folder
import report_suite
from spectrim.report.attention import attention_figures, head
from spectrim.report.charts import FRAME
from spectrim.report.cosine import blocks, cosine_by_block

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def scores() -> dict[str, Any]:
    return report_suite.with_tasks(report_folder.scores(0.14, 84_934_656))


def set_blocks(scores: dict[str, Any], label: str, values: list[float | None]) -> None:
    row = next(one for one in scores["rows"] if one["label"] == label)
    settings = {"task": "Hidden states", "blocks": values}
    score = report_suite.score(0.9, "cosine", "higher", settings=settings)
    row["tasks"]["Hidden states"] = {"cosine": score}


def test_cosines_lie_where_the_numbers_say(scores: dict[str, Any]) -> None:
    set_blocks(scores, "small", [1.0, 0.9, 0.5])
    tree = ElementTree.fromstring(str(cosine_by_block(scores)))
    places = [
        (float(one.get("cx", "")), float(one.get("cy", ""))) for one in tree.iter(f"{SVG}circle")
    ]
    middle = (FRAME.left + FRAME.right) / 2
    assert [x for x, _ in places] == [FRAME.left, middle, FRAME.right]
    bottom = 0.5 - 0.06 * 0.5
    part = [(FRAME.bottom - y) / (FRAME.bottom - FRAME.top) for _, y in places]
    assert part == pytest.approx(
        [(one - bottom) / (1 - bottom) for one in (1.0, 0.9, 0.5)], abs=1e-3
    )
    small = scores["rows"][1]["tasks"]["Hidden states"]
    small["breaking_block"] = report_suite.score(1, "block", "none")
    again = ElementTree.fromstring(str(cosine_by_block(scores)))
    (line,) = [one for one in again.iter(f"{SVG}line") if one.get("class") == "diagonal"]
    assert float(line.get("x1", "")) == float(line.get("x2", "")) == middle
    hints = [str(one.text) for one in tree.iter(f"{SVG}title")]
    assert hints == [
        f"small, block {at}: {one}" for at, one in enumerate(("1.0000", "0.9000", "0.5000"))
    ]


def test_every_model_has_its_line_and_what_is_no_number_a_gap(scores: dict[str, Any]) -> None:
    set_blocks(scores, "small", [1.0, None, 0.5])
    set_blocks(scores, "int4", [1.0, 0.99, 0.98])
    assert list(blocks(scores)) == ["small", "int4"]
    tree = ElementTree.fromstring(str(cosine_by_block(scores)))
    assert len(list(tree.iter(f"{SVG}circle"))) == 2 + 3
    assert not [one for one in tree.iter(f"{SVG}line") if one.get("class") == "diagonal"]
    names = [one.text for one in tree.iter(f"{SVG}text") if one.get("class") == "point"]
    assert names == ["small", "int4"]


def test_no_cosines_no_figure(scores: dict[str, Any]) -> None:
    set_blocks(scores, "small", [None, None])
    assert cosine_by_block(scores) is None
    assert cosine_by_block(report_folder.scores(0.14, 84_934_656)) is None


def squares(svg: object) -> dict[tuple[int, int], int]:
    """Return the colour of each (row, column) of a drawn map."""
    found = {}
    for path in ElementTree.fromstring(str(svg)).iter(f"{SVG}path"):
        step = int(path.get("class", "k")[1:])
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)h", path.get("d", "")):
            side = 312 / 3
            found[round((float(y) - 24) / side), round((float(x) - 78) / side)] = step
    return found


def test_squares_are_coloured_by_the_root_of_the_attention(scores: dict[str, Any]) -> None:
    settings = scores["rows"][1]["tasks"]["Attention"]["moved"]["settings"]
    dense = [[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.04, 0.0, 0.96]]
    small = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]]
    settings |= {"maps": {"dense": dense, "small": small}, "tokens": ["a", " b", " c"]}
    settings["fourier"] = {"dense": [[0.0] * 3, [0.0, 2.0, 0.0], [0.0] * 3]}
    found = head(scores)
    assert found is not None and (found.block, found.head) == (17, 3)
    first, second, third = attention_figures(found)
    for drawn, values in ((first, dense), (second, small)):
        expected = np.minimum((np.sqrt(values) * 11).astype(int), 10)
        assert squares(drawn) == {
            (row, column): expected[row, column] for row in range(3) for column in range(3)
        }
    assert squares(third)[1, 1] == 10 and set(squares(third).values()) == {0, 10}
    texts = [one.text for one in ElementTree.fromstring(str(first)).iter(f"{SVG}text")]
    assert texts[:4] == ["dense, attention", "a", "b", "c"]


def test_maps_of_a_broken_model_are_drawn_all_the_same(scores: dict[str, Any]) -> None:
    settings = scores["rows"][1]["tasks"]["Attention"]["moved"]["settings"]
    settings["maps"]["small"] = [[float("nan")] * 24] * 24
    found = head(scores)
    assert found is not None and len(attention_figures(found)) == 4


def test_no_maps_no_head(scores: dict[str, Any]) -> None:
    del scores["rows"][1]["tasks"]["Attention"]["moved"]["settings"]["maps"]
    assert head(scores) is None
    assert head(report_folder.scores(0.14, 84_934_656)) is None
