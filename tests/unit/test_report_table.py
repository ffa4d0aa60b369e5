"""Numbers as words, the table of scores, the terminal and the card."""

from __future__ import annotations

import ast
import copy
import re
from io import StringIO
from math import inf, nan
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from rich.console import Console

import report_folder
from spectrim.model.architectures import role_group
from spectrim.report import table, terminal, words
from spectrim.report.card import card, licence_of, write_card
from spectrim.report.folder import read

GAP = words.GAP


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.plain(19.885), "19.9"),
        (words.plain(5_123_456.0), "5,123,456"),
        (words.plain(0.000712, 2), "0.00071"),
        (words.plain(2.5e-9), "2.50e−09"),
        (words.plain(0), "0"),
        (words.plain(nan), "–"),
        (words.fixed(0.14, sign=True), "+0.140"),
        (words.fixed(-0.0001, sign=True), "0.000"),
        (words.fixed(-0.02), "−0.020"),
        (words.fixed(inf), "–"),
        (words.share(0.7934), f"79.3{GAP}%"),
        (words.share(None), "–"),
        (words.times(0.886), f"×{GAP}0.89"),
        (words.times(0.9956), f"×{GAP}0.996"),
        (words.times(1.0), f"×{GAP}1.00"),
        (words.count(134_515_008), f"134.5{GAP}M"),
        (words.count(999_999), f"1.00{GAP}M"),
        (words.count(999), "999"),
        (words.count(1_499_000_000_000), f"1.50{GAP}T"),
        (words.bytes_(269_030_016), f"269.0{GAP}MB"),
        (words.bytes_(12), f"12{GAP}B"),
        (words.shortened("a-very-long-model-name", 9), "a-ve…name"),
        (words.shortened("short", 9), "short"),
        (role_group("expert31_gate_up"), "experts gate_up"),
        (role_group("encoder_q"), "encoder_q"),
    ],
)
def test_numbers_are_said_as_people_say_them(said: str, expected: str) -> None:
    assert said == expected


def test_lines_hold_dense_beside_small_with_change_and_direction() -> None:
    lines = {line.name: line for line in table.lines(report_folder.scores(0.14, 84_934_656))}
    loss = lines["Loss, nats/token"]
    assert (loss.arrow, loss.cells, loss.change) == ("↓", ("2.990", "3.130"), "+0.140")
    assert lines["Excess loss, nats/token"].cells == ("", "+0.140 ± 0.017")
    kept = lines["Numbers in linear maps"]
    assert kept.cells == (f"106.2{GAP}M", f"84.9{GAP}M") and kept.change == f"×{GAP}0.80"
    assert lines["Same first choice as dense"].arrow == lines["Decoding, tokens/s"].arrow == "↑"
    assert lines["Share of embedding and head"].arrow == ""
    assert "  attention to 1024 tokens" in lines


def test_bytes_are_told_against_what_fp16_and_fp32_would_take() -> None:
    lines = {line.name: line for line in table.lines(report_folder.scores(0.14, 84_934_656))}
    assert lines["  against dense in fp16"].cells[0] == f"100.0{GAP}%"
    assert lines["  against dense in fp32"].cells[0] == f"50.0{GAP}%"
    small = 2 * (134_515_008 - 106_168_320 + 84_934_656)
    part = f"{100 * small / (2 * 134_515_008):.1f}{GAP}%"
    assert lines["  against dense in fp16"].cells[1] == part


def test_speeds_are_compared_by_the_ratio_of_rounds() -> None:
    scores = report_folder.scores(0.14, 84_934_656)
    scores["rows"][1]["decode_ratio"]["value"] = 1.5
    lines = {line.name: line for line in table.lines(scores)}
    assert lines["Decoding, tokens/s"].change == f"×{GAP}1.50"
    del scores["rows"][1]["decode_ratio"]
    lines = {line.name: line for line in table.lines(scores)}
    assert lines["Decoding, tokens/s"].change == f"×{GAP}0.89"


def test_a_missing_score_is_left_out_and_a_broken_one_shown() -> None:
    scores = report_folder.scores(0.14, 84_934_656)
    for row in scores["rows"]:
        del row["prefill"]
    scores["rows"][1]["loss"]["value"] = None
    lines = {line.name: line for line in table.lines(scores)}
    assert "Prefill, tokens/s" not in lines
    assert lines["Loss, nats/token"].cells[1] == lines["Loss, nats/token"].change == "–"
    assert table.lines({"rows": []}) == []


def shown(scores: dict[str, object], width: int = 80) -> str:
    console = Console(file=StringIO(), width=width, force_terminal=False)
    terminal.show(scores, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_terminal_shows_everything_in_eighty_columns() -> None:
    said = shown(report_folder.scores(0.14, 84_934_656)).replace(GAP, " ")
    assert max(map(len, said.splitlines())) <= 80
    said = " ".join(said.split())
    for part in ("+0.140 ± 0.017", "× 0.80", "16368 tokens, window 1024", "tokens/s", "c4"):
        assert part in said
    assert "! Small: decode runs at 0.89 x the dense speed here." in said
    assert "…" not in said


def test_markup_and_escapes_in_names_do_not_reach_the_terminal() -> None:
    scores = report_folder.scores(0.14, 84_934_656)
    scores["model"] = "[red]name[/red]\x1b[31m"
    scores["warnings"] = ["[link=x]warning[/link]"]
    said = shown(scores)
    assert "[red]name[/red]" in said and "[link=x]warning[/link]" in said and "\x1b" not in said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return report_folder.write(tmp_path / "partial-0", blocks=2)


def test_the_card_warns_first_and_shows_how_to_load(folder: Path) -> None:
    text = write_card(folder, name="me/small").read_text(encoding="utf-8")
    body = text.split("---\n", 2)[2]
    assert "Import `spectrim` before" in "\n".join(body.strip().splitlines()[:4])
    assert "random weights" in "\n".join(body.strip().splitlines()[:6])
    code = re.search(r"```python\n(.*?)```", body, re.DOTALL)
    assert code is not None
    statements = ast.parse(code[1]).body
    assert ast.unparse(statements[0]) == "import spectrim"
    assert "AutoModelForCausalLM.from_pretrained('me/small')" in code[1]
    # Where the folder will lie when the card is read, it does not know itself.
    assert folder.name not in str(card(read(folder)))


def test_the_cards_metadata_are_what_the_hub_reads(folder: Path) -> None:
    data = ModelCard.load(write_card(folder)).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert (data.library_name, data.license) == ("spectrim", "apache-2.0")
    assert "spectrim" in data.tags and data.pipeline_tag == "text-generation"


def test_recipe_scores_and_versions_are_in_the_card(folder: Path) -> None:
    text = str(card(read(folder))).replace(GAP, " ")
    recipe = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert recipe is not None and yaml.safe_load(recipe[1])["keep"] == "80% of linear"
    assert "| Loss, nats/token | ↓ | 2.990 | 3.130 | +0.140 |" in text
    assert "spectrim 0.1.0, torch 2.13.0" in text and "four-bit grid" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_the_licence_is_the_dense_models(folder: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    assert licence_of(base) is licence_of(None) is None
    (base / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    assert licence_of(base) == "mit"
    assert ModelCard.load(write_card(folder, base=base)).data.license == "mit"
    (base / "README.md").write_text("---\n- no\n- mapping\n---\n# base\n")
    assert licence_of(base) is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [("org/name", "org/name"), ("/home/me/model", None), ("./here", None), ("model.gguf", None)],
)
def test_only_a_hub_name_becomes_the_base_model(
    folder: Path, model: str, expected: str | None
) -> None:
    output = read(folder)
    scores = copy.deepcopy(output.scores) | {"model": model}
    made = card(type(output)(**{**vars(output), "scores": scores}))
    assert made.data.base_model == expected and made.data.license is None


def test_a_card_without_scores_and_of_an_encoder_decoder_model(folder: Path) -> None:
    (folder / "scores.json").unlink()
    (folder / "config.json").write_text('{"is_encoder_decoder": true}')
    text = write_card(folder).read_text(encoding="utf-8")
    assert "AutoModelForSeq2SeqLM.from_pretrained" in text and "## Scores" not in text
    assert ModelCard(text).data.pipeline_tag is None


def test_names_cannot_break_out_of_the_card(folder: Path) -> None:
    output = read(folder)
    evil = "a|b<script>`x`\n# heading"
    scores = copy.deepcopy(output.scores) | {"model": evil, "warnings": [evil]}
    made = type(output)(**{**vars(output), "scores": scores, "recipe": "x: |\n  ```\n  # y\n"})
    text = str(card(made))
    assert "\n# heading" not in text
    assert r"a\|b\<script\>\`x\` \# heading" in text
    assert "````yaml\nx: |\n  ```\n  # y\n````" in text
