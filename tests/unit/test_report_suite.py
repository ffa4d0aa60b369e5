"""The page on a whole suite and on several runs: everything is told, nothing leaves its figure."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_report_structure import SVG, assert_text_stays_inside, parsed, words_of

import report_folder
from spectrim.report.folder import read
from spectrim.report.page import page


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_folder.write(tmp_path_factory.mktemp("outputs") / "suite", blocks=4, suite=True)


def test_no_text_of_a_suite_leaves_its_figure(suite: Path) -> None:
    tree = ElementTree.fromstring(page(read(suite), [read(suite)]))
    # Front, speed and prediction; bars of two units; maps; spectra; cosine; attention, Fourier.
    assert len(list(tree.iter(f"{SVG}svg"))) == 3 + 2 + 3 * 2 + 7 + 1 + 2 * 2
    assert_text_stays_inside(tree)


def test_a_suite_is_told_in_full(suite: Path) -> None:
    said = words_of(parsed(suite))
    for part in (
        "int4 is smaller and loses less: 78.3 MB at 3.004 nats/token",
        "int4 78.3 MB 29.1 % 3.004 +0.014 ± 0.002 yes The dense weights lie on a four-bit grid",
        "accuracy ↑ 62.0 ± 6.5 % 57.0 ± 6.5 % −5.0 pts 200",
        "lost, gained; McNemar 11.0 %, 6.0 %; p 0.12",
        "Energy of dense and small was not measured: this machine has no meter",
        "Topics was left out: needs the package bertopic; pip install 'spectrim[evaluation]'.",
        "Attention of block 17, head 3",
    ):
        assert part in said
    assert "All runs" not in said and "Quality against speed" not in said


def test_several_runs_have_a_column_each(suite: Path, tmp_path: Path) -> None:
    other = report_folder.write(tmp_path / "run-60", blocks=2, keep=0.6, excess=0.57, suite=True)
    tree = ElementTree.fromstring(page(read(suite), [read(other)]))
    said = words_of(tree)
    assert "All runs" in said and "Quality against speed" in said
    (section,) = [one for one in tree.iter("section") if "All runs" in words_of(one)[:8]]
    assert "dense suite run-60 change Loss, nats/token ↓ 2.990 3.130 3.560 +0.140" in words_of(
        section
    )
    figure = words_of(next(tree.iter(f"{SVG}svg")))
    assert "run-60" in figure and "suite" in figure and "small" not in figure
