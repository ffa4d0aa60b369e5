"""What the page says in words: of which model it is, and how far predictions were off."""

from __future__ import annotations

from dataclasses import replace

import pytest

import report_folder
from spectrim.report.folder import Output, read
from spectrim.report.origin import full_name
from spectrim.report.page import page


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Output:
    return read(report_folder.write(tmp_path_factory.mktemp("outputs") / "small", blocks=1))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("demo", "HuggingFaceTB/SmolLM2-135M-Instruct (demo)"),
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("/home/me/models/mine/", "mine"),
        ("files/here/mine.gguf", "mine.gguf"),
        ("/", "/"),
    ],
)
def test_title_and_heading_name_the_model_in_full(output: Output, model: str, name: str) -> None:
    written = page(replace(output, scores=output.scores | {"model": model}))
    assert f"<title>{name}, made smaller</title>" in written
    assert f"<h1>{name}, made smaller</h1>" in written


def test_without_scores_the_plan_names_the_model_and_without_that_the_folder(
    output: Output,
) -> None:
    alone = replace(output, scores={}, plan={"model": "org/name"})
    assert full_name(alone) == "org/name"
    assert full_name(replace(alone, plan={})) == "small"


def test_the_page_says_how_far_predictions_are_off(output: Output) -> None:
    said = (
        "Measured is on average 1.2 times predicted (geometric mean of 8 budgets, 0.93 to 1.5 "
        "times)."
    )
    assert said in page(output)
    assert "on average" not in page(replace(output, scores=output.scores | {"prediction": None}))
