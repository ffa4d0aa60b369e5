"""The summariser of examples/: trained for seconds, swept over two ranks, continued, reported."""

import json
import random
from pathlib import Path

import pytest
import torch

from spectrim.plan import Plan

FULL = 48
RANKS = {"0.75": 36, "0.25": 12}
METHODS = ("truncated_svd", "loss_aware_svd")
TINY = (
    "--minutes 0.05 --limit 28 --width 48 --blocks 1 --vocabulary 400 --calibration 8 "
    f"--methods {','.join(METHODS)} --ranks {','.join(RANKS)}"
).split()


@pytest.fixture(scope="module")
def example(root):
    """Return the modules of the example, writing shorter summaries and timing fewer of them."""
    pytest.importorskip("rouge_score")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "examples")
        import bart_denoising
        import bart_results
        import bart_summariser
        import bart_training

        patch.setattr(bart_summariser, "ROUNDS", 1)
        patch.setattr(bart_summariser, "TIMED_TOKENS", 4)
        patch.setattr(bart_training, "SUMMARY", 16)
        patch.setattr(bart_denoising, "TEXTS", ())
        yield bart_summariser, bart_training, bart_results, bart_denoising


@pytest.fixture(scope="module")
def dialogues(data) -> Path:
    if not (data / "dialogue").is_dir():
        pytest.skip(f"no dialogues in {data}; set SPECTRIM_DATA to the folder that holds them")
    return data


@pytest.fixture(scope="module")
def run(example, dialogues, tmp_path_factory) -> Path:
    """Return the folder of a run over two ranks."""
    output = tmp_path_factory.mktemp("bart")
    example[0].main(["-o", str(output), "--data", str(dialogues), *TINY])
    return output


@pytest.fixture(scope="module")
def rows(run):
    """Return the rows by method, rank and format."""
    held = json.loads((run / "results.json").read_text(encoding="utf-8"))
    return {(row["method"], row["rank"], row["format"]): row for row in held["rows"]}


def test_every_rank_has_a_row_where_the_format_saves_something(rows):
    wanted = {("dense", FULL, "dense")}
    for method in METHODS:
        wanted |= {(method, 36, "pivoted"), (method, 12, "pivoted"), (method, 12, "low_rank")}
    assert set(rows) == wanted  # at rank 36, two factors would store 1.5 times the matrix


def test_only_attention_is_cut_and_all_of_it_to_the_rank(run, rows):
    for method, rank, form in rows:
        if form == "dense":
            continue
        decisions = Plan.read(run / "small" / f"{method}-{rank}-{form}" / "plan.json").decisions
        cut = {one.role for one in decisions if one.format != "dense"}
        parts = [f"encoder_{role}" for role in "qkvo"] + [f"decoder_{role}" for role in "qkvo"]
        assert cut == {*parts, *(f"decoder_cross_{role}" for role in "qkvo")}
        assert {(one.format, one.rank) for one in decisions if one.role in cut} == {(form, rank)}


def test_what_is_counted_follows_the_formats(rows):
    dense = rows["dense", FULL, "dense"]
    for (_, rank, form), row in rows.items():
        each = {"dense": FULL**2, "low_rank": 2 * FULL * rank, "pivoted": (2 * FULL - rank) * rank}
        saved = 12 * (FULL**2 - each[form])  # 4 maps in the encoder's block, 8 in the decoder's
        assert dense["multiply_adds"] - row["multiply_adds"] == saved
        order = 12 * 4 * FULL if form == "pivoted" else 0  # an int32 for every output
        assert dense["bytes"] - row["bytes"] == 4 * saved - order


def test_both_formats_hold_the_same_map(rows, example):
    for method in METHODS:
        one, other = (rows[method, 12, form] for form in example[0].FORMATS)
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
        assert one["loss"] != rows["dense", FULL, "dense"]["loss"]


def test_a_finished_run_measures_and_trains_nothing_again(run, example, dialogues, monkeypatch):
    def refuse(*_):
        raise AssertionError("this was done already")

    monkeypatch.setattr(example[0].Sweep, "_measured", refuse)
    monkeypatch.setattr(example[1], "_Run", refuse)
    before = (run / "results.md").read_bytes()
    example[0].main(["-o", str(run), "--data", str(dialogues), *TINY])
    assert (run / "results.md").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "value"), [("--minutes", "0.06"), ("--seed", "1"), ("--limit", "30")]
)
def test_a_training_with_other_settings_is_refused(run, example, dialogues, option, value):
    asked = ["-o", str(run), "--data", str(dialogues), *TINY, option, value]
    told = r"training\.json is of a training with other settings or dialogues; .* with -o$"
    with pytest.raises(SystemExit, match=told):
        example[0].main(asked)


def test_rows_are_of_their_calibration_and_their_model(run, example, dialogues, monkeypatch):
    def measure(*_):
        raise InterruptedError

    monkeypatch.setattr(example[0].Sweep, "_measured", measure)
    with pytest.raises(InterruptedError):
        example[0].main(["-o", str(run), "--data", str(dialogues), *TINY, "--calibration", "9"])


def test_the_report_shows_table_figures_knees_and_samples(run, example):
    text = (run / "results.md").read_text(encoding="utf-8")
    for heading in (
        "Does the model read?",
        "ROUGE-1 | ROUGE-2 | ROUGE-L",
        "Knee",
        "One summary per rank",
        "a person",
    ):
        assert heading in text
    for name in example[2].SHOWN:
        assert f"({name}.svg)" in text
        drawn = (run / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn.count("<circle") == 7 and "<style>" in drawn


def test_statistics_are_collected_once(run):
    assert len(list((run / "cache" / "statistics").glob("*/done.json"))) == 1


def test_no_dialogue_is_in_two_splits(example, dialogues):
    splits = example[1].read(dialogues, seed=0)
    parts = [{row["dialogue"] for row in part} for part in vars(splits).values()]
    assert [len(part) for part in parts] == [len(part) for part in vars(splits).values()]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_an_interrupted_training_continues(example, dialogues, tmp_path):
    training = example[1]
    splits = training.read(dialogues, seed=0, limit=28)
    settings = training.Settings(minutes=10, seed=0, width=48, blocks=1, vocabulary=400)
    made = [training._Run(tmp_path, _tokenizer(training, splits), splits, settings)]
    made[0].seconds = 400  # past the denoising
    made[0].epoch()
    made.append(training._Run(tmp_path, _tokenizer(training, splits), splits, settings))
    assert made[1].steps == made[0].steps > 0 and made[1].seconds == made[0].seconds
    weights = [run.model.state_dict() for run in made]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    other = training.Settings(minutes=10, seed=1, width=48, blocks=1, vocabulary=400)
    with pytest.raises(SystemExit, match=r"training\.pt is of a training with other settings"):
        training._Run(tmp_path, _tokenizer(training, splits), splits, other)


def _tokenizer(training, splits):
    return training.new_tokenizer(splits.train, 400)


def test_holes_are_what_is_missing(example):
    class Tokens:
        eos_token_id, mask_token_id = 2, 4

    piece = list(range(10, 400))
    read, written = example[3].with_holes(piece, Tokens(), random.Random(0))
    assert written == [*piece, 2] and read[-1] == 2
    seen = [one for one in read[:-1] if one != 4]
    assert seen == sorted(set(seen) & set(piece))  # in order, nothing new
    assert 0.15 < 1 - len(seen) / len(piece) < 0.35


@pytest.mark.parametrize("turn", [1, -1])
def test_the_knee_is_where_a_curve_leaves_its_chord(example, turn):
    ranks, values = [10, 20, 30, 40, 50], [0.0, 8.0, 9.0, 9.5, 10.0]
    assert example[2].knee(ranks, [turn * value for value in values]) == 20
    assert example[2].knee(ranks, ranks) is None  # straight
    assert example[2].knee(ranks, [value**2 for value in ranks]) is None  # below its chord


def test_missing_data_are_one_line(example, tmp_path):
    with pytest.raises(SystemExit, match=r"holds none of dialogue/.*; name it with --data"):
        example[0].main(["-o", str(tmp_path / "run"), "--data", str(tmp_path)])


@pytest.mark.parametrize("ranks", ["1.0", "0", "1.5,0.5"])
def test_ranks_are_parts_of_the_full_one(example, tmp_path, ranks, capsys):
    with pytest.raises(SystemExit):
        example[0].main(["-o", str(tmp_path), "--ranks", ranks])
    assert "write parts of the full rank" in capsys.readouterr().err


def test_an_unknown_method_is_named(example, tmp_path, capsys):
    with pytest.raises(SystemExit):
        example[0].main(["-o", str(tmp_path), "--methods", "truncated_sdv"])
    assert "no method named 'truncated_sdv'" in capsys.readouterr().err
