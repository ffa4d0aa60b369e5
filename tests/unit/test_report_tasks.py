"""Tasks as lines, bars and sentences: every number is the one in the scores."""

from __future__ import annotations

import copy
import json
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from huggingface_hub import ModelCard
from rich.console import Console

import report_folder
import report_suite
from spectrim.report import bars, table, tasks, terminal, words
from spectrim.report.card import write_card

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def scores() -> dict[str, Any]:
    return report_suite.with_tasks(report_folder.scores(0.14, 84_934_656))


def flat(text: str) -> str:
    return text.replace(words.GAP, " ")


def test_every_measure_has_a_line_with_interval_direction_and_count(scores: dict[str, Any]) -> None:
    lines = {(line.task, line.name): line for line in tasks.lines(scores)}
    one = lines["ARC-Easy", "accuracy"]
    assert tuple(map(flat, one.cells)) == ("62.0 ± 6.5 %", "57.0 ± 6.5 %")
    assert (one.arrow, flat(one.change), one.count) == ("↑", "−5.0 pts", "200")
    points = lines["StereoSet", "stereotype, points"]
    assert flat(points.cells[0]) == "57.1 ± 5.0" and (points.arrow, points.change) == ("", "−0.5")
    assert lines["Hidden states", "cosine"].cells == ("", "0.926")
    assert lines["Hidden states", "breaking block"].cells == ("", "26")
    assert lines["Banking77, linear probe", "McNemar p"].cells == ("", f"p{words.GAP}0.50")
    assert lines["Banking77, linear probe", "McNemar p"].change == ""
    flipped = lines["BoolQ", "lost, gained; McNemar"]
    assert tuple(map(flat, flipped.cells)) == ("", "11.0 %, 6.0 %; p 0.12")
    assert not {"lost", "gained"} & {name for _, name in lines}
    assert tasks.columns(scores) == ["dense", "small"]  # int8 and int4 were not asked


def test_a_score_that_is_no_number_is_shown_as_missing(scores: dict[str, Any]) -> None:
    accuracy = scores["rows"][1]["tasks"]["BoolQ"]["accuracy"]
    accuracy |= {"value": None, "interval": None}
    (line,) = [one for one in tasks.lines(scores) if (one.task, one.name) == ("BoolQ", "accuracy")]
    assert line.cells[1] == words.MISSING and line.change == ""


@pytest.mark.parametrize(
    ("p", "said"), [(0.0004, "p < 0.001"), (0.0123, "p 0.012"), (0.5, "p 0.50"), (None, "p –")]
)
def test_small_probabilities_are_said_to_be_small(p: float | None, said: str) -> None:
    assert flat(words.probability(p)) == said


def test_what_was_not_measured_is_said_with_its_reason(scores: dict[str, Any]) -> None:
    scores["rows"][1]["tasks"]["BoolQ"]["time"] = report_suite.score(
        None, "s", "lower", settings={"not_measured": "no clock."}
    )
    assert tasks.unmeasured(scores) == [
        "Energy of dense and small was not measured: this machine has no meter that a program can "
        "read.",
        "BoolQ: time of small was not measured: no clock.",
        "Topics was left out: needs the package bertopic; pip install 'spectrim[evaluation]'.",
    ]
    (energy,) = [line for line in table.lines(scores) if line.name == "Energy, J/token"]
    assert [flat(cell) for cell in energy.cells] == ["not measured", "not measured", "", ""]
    (time,) = [line for line in tasks.lines(scores) if line.name == "time, s"]
    assert time.cells == ("", "not measured")
    assert tasks.unmeasured(report_folder.scores(0.14, 84_934_656)) == []


def test_scores_of_plug_ins_follow_the_known_ones(scores: dict[str, Any]) -> None:
    for row, number in zip(scores["rows"], (2.0, 3.0), strict=False):
        row["page_faults"] = report_suite.score(number * 1e9, "bytes", "lower")
    line = table.lines(scores)[-1]
    assert (line.group, line.name, line.arrow) == ("Further", "Page faults", "↓")
    assert tuple(map(flat, line.cells)) == ("2.00 GB", "3.00 GB", "", "")
    assert flat(line.change) == "× 1.50"


def test_flips_on_text_are_one_line(scores: dict[str, Any]) -> None:
    lines = {line.name: line for line in table.lines(scores)}
    cells = lines["  lost, gained; McNemar"].cells
    assert cells[0] == "" and flat(cells[1]) == "5.0 %, 2.5 %; p < 0.001"
    assert flat(lines["Next token right"].change) == "−1.4 pts"
    assert [flat(line.cells[5]) for line in table.texts(scores)] == ["5.0 %, 2.5 %; p < 0.001"] * 3


def test_bars_end_where_the_scores_say(scores: dict[str, Any]) -> None:
    share, points = map(ElementTree.fromstring, map(str, bars.figures(scores)))
    measures = [("ARC-Easy", "accuracy"), ("BoolQ", "accuracy"), ("SQuAD", "exact_match")]
    measures += [("SQuAD", "f1"), ("Banking77, linear probe", "macro_f1")]
    expected = [row["tasks"][task][name] for task, name in measures for row in scores["rows"][:2]]
    drawn = [one for one in share.iter(f"{SVG}rect") if "bar" in one.get("class", "")]
    reaches = [one for one in share.iter(f"{SVG}line") if one.get("class") == "reach"]
    long = bars.RIGHT - bars.LEFT
    for bar, reach, score in zip(drawn, reaches, expected, strict=True):
        assert float(bar.get("width", "")) == pytest.approx(score["value"] * long, abs=0.01)
        ends = [(float(reach.get(at, "")) - bars.LEFT) / long for at in ("x1", "x2")]
        assert ends == pytest.approx(score["interval"], abs=1e-4)
    tones = [one.get("class") for one in drawn]
    assert tones == ["bar m0", "bar m1"] * 5
    assert [str(one[0].text) for one in points.iter(f"{SVG}rect")][0] == (
        "StereoSet, ICAT, dense: 68.4, 95 % interval 63.0 to 73.5"
    )


def test_measures_of_one_model_alone_and_broken_ones_have_no_bars(scores: dict[str, Any]) -> None:
    names = [group.name for group in bars.groups(scores)]
    assert not any(name.startswith(("Hidden", "Attention")) for name in names)
    assert not any("lost" in name for name in names)
    scores["rows"][1]["tasks"]["BoolQ"]["accuracy"]["value"] = None
    assert "BoolQ, accuracy" not in [group.name for group in bars.groups(scores)]
    assert bars.figures(report_folder.scores(0.14, 84_934_656)) == []


def test_values_below_zero_grow_to_the_left(scores: dict[str, Any]) -> None:
    for row, number in zip(scores["rows"], (-0.5, 0.25), strict=False):
        row["tasks"] = {"Topics": {"npmi": report_suite.score(number, "npmi", "higher")}}
    (figure,) = bars.figures(scores)
    left, right = list(ElementTree.fromstring(str(figure)).iter(f"{SVG}rect"))
    zero = float(right.get("x", ""))
    assert float(left.get("x", "")) == bars.LEFT
    assert float(left.get("x", "")) + float(left.get("width", "")) == pytest.approx(zero, abs=0.02)


@pytest.mark.parametrize("baselines", [False, True])
def test_the_terminal_shows_the_suite_in_eighty_columns(baselines: bool) -> None:
    plain = report_folder.scores(0.14, 84_934_656)
    file = StringIO()
    shown = report_suite.with_tasks(plain, baselines=baselines)
    terminal.show(shown, Console(file=file, width=80, force_terminal=False))
    said = file.getvalue()
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    flowing = " ".join(flat(said).split())
    assert "McNemar 11.0 %, 6.0 % p 0.12" in flowing or "p 0.12" in flowing
    for part in ("ARC-Easy", "62.0 ± 6.5 %", "Topics was left out: needs the package bertopic"):
        assert part in flowing
    assert ("int4 is smaller and loses less" in flowing) == baselines


def shown(scores: dict[str, Any], width: int) -> list[str]:
    file = StringIO()
    terminal.show(scores, Console(file=file, width=width, force_terminal=False))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100, 160])
@pytest.mark.parametrize("baselines", [False, True])
def test_no_name_of_a_measure_is_broken(
    scores: dict[str, Any], width: int, baselines: bool
) -> None:
    plain = report_folder.scores(0.14, 84_934_656)
    scores = report_suite.with_tasks(plain, baselines=baselines)
    said = shown(scores, width)
    assert max(map(len, said)) <= width
    for name in [line.name for line in table.lines(scores)] + [
        f"  {line.name}" for line in tasks.lines(scores)
    ]:
        assert any(f"{one} ".startswith(f"{name} ") for one in said), name


def test_wide_intervals_push_no_column_out_of_the_terminal(scores: dict[str, Any]) -> None:
    for row in scores["rows"][:2]:
        rare = report_suite.score(0.9, "share", "higher", n=1234, interval=[0.4, 1.0])
        row["tasks"] = {"A task, and one of its many categories": {"rarely right": rare}}
    assert any("90.0 (40.0–100.0) %  90.0 (40.0–100.0) %" in flat(one)
               for one in shown(scores, 100))  # fmt: skip
    said = shown(scores, 80)
    at = next(place for place, one in enumerate(said) if "rarely right" in one)
    assert flat(said[at]).split() == ["rarely", "right", "↑", "90.0", "90.0", "0.0", "pts", "1,234"]
    assert flat(said[at + 1]).split() == ["(40.0–100.0)", "%", "(40.0–100.0)", "%"]


def test_where_nothing_fits_names_are_folded_as_far_in_as_they_begin(
    scores: dict[str, Any],
) -> None:
    said = shown(scores, 66)
    at = next(place for place, one in enumerate(said) if one.startswith("  attention"))
    assert said[at + 1].startswith("  ")  # still below "attention"


def test_the_card_has_tasks_and_results_that_the_hub_reads(tmp_path: Path) -> None:
    folder = report_folder.write(tmp_path / "small", blocks=2, suite=True)
    text = write_card(folder).read_text(encoding="utf-8")
    assert "| ARC-Easy | accuracy | ↑ | 62.0 ± 6.5 % | 57.0 ± 6.5 % | −5.0 pts | 200 |" in flat(
        text
    )
    assert "int4: The dense weights lie on a four-bit grid already" in text
    assert "Topics was left out: needs the package bertopic" in text
    data = ModelCard.load(folder / "README.md").data
    found = {(one.dataset_name, one.metric_type): one for one in data.eval_results}
    one = found["ARC-Easy", "accuracy"]
    assert one.metric_value == pytest.approx(0.57) and one.dataset_type == "arc-easy"
    assert one.metric_args == {"n": 200, "interval": [0.504, 0.634]}
    assert found["wikitext-2", "perplexity"].metric_value == pytest.approx(22.874)
    assert data.model_name == "SmolLM2-135M-Instruct, made smaller"


def test_a_card_without_results_names_no_model_index(tmp_path: Path) -> None:
    folder = report_folder.write(tmp_path / "small", blocks=2)
    scores = copy.deepcopy(report_folder.scores(0.14, 84_934_656)) | {"rows": []}
    (folder / "scores.json").write_text(json.dumps(scores))
    text = write_card(folder).read_text(encoding="utf-8")
    assert "model-index" not in text and "model_name" not in text


def test_a_lopsided_interval_shows_both_its_ends() -> None:
    rare = {"value": 1 / 24, "unit": "share", "interval": [0.007, 0.202], "n": 24}
    assert flat(tasks.shown(rare)) == "4.2 (0.7–20.2) %"
    assert flat(tasks.shown({**rare, "value": 0.1045})) == "10.4 ± 9.8 %"
