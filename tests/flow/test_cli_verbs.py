"""What the verbs of the command line hand on to the package, and what they show."""

import json
from pathlib import Path

import pytest

import spectrim
from spectrim.cli import main
from spectrim.verbs import auto


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Return (exit code, standard output, standard error) of a command line."""
    with pytest.raises(SystemExit) as leaving:
        main.main(arguments)
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def test_list_names_every_plug_in_with_a_line_on_each(capsys):
    code, out, _ = run(capsys, "list", "methods")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "methods:"
    folder = Path(spectrim.__file__).with_name("methods")
    files = sorted(path.stem for path in folder.glob("[!_]*.py"))
    assert [line.split()[0] for line in lines[1:]] == files and "loss_aware_svd" in files
    assert all(len(line.split()) > 3 for line in lines[1:])


def test_list_alone_lists_every_kind(capsys):
    _, out, _ = run(capsys, "list")
    headings = [line for line in out.splitlines() if not line.startswith(" ")]
    kinds = "methods formats allocators metrics tasks stages families exporters"
    assert headings == [f"{kind}:" for kind in kinds.split()]
    assert "  llama" in out.splitlines()


def test_every_task_is_listed_once_with_all_that_answer_it(capsys):
    from spectrim.cli.help_texts import LM_EVAL

    _, out, _ = run(capsys, "list", "tasks")
    lines = out.splitlines()[1:]
    named = [line.split()[0] for line in lines if not line.startswith("   ")]
    assert len(named) == len(set(named)) and {"banking77", "snips", *LM_EVAL} <= set(named)
    at = next(place for place, line in enumerate(lines) if line.split()[0] == "snips")
    assert lines[at].endswith("[intent_likelihood]") and lines[at + 1].endswith("[intent_probe]")
    own = [line for line in lines if line.endswith("[harness]")]
    assert len({line.split(maxsplit=1)[1] for line in own}) == len(own) == len(LM_EVAL)


def test_options_change_the_recipe(monkeypatch, tmp_path, capsys):

    asked = {}

    def shrink(recipe, output, **options):
        asked.update(recipe=recipe, output=output, **options)
        return output

    monkeypatch.setattr("spectrim.verbs.shrink.shrink", shrink)
    (tmp_path / "recipe.yaml").write_text(
        "model: other\nkeep: 50%\nstages: [factorize: {method: truncated_svd, refine: on}]"
    )
    output = tmp_path / "small"
    code, out, _ = run(
        capsys, "shrink", "demo", "--recipe", str(tmp_path / "recipe.yaml"),
        "--tokens", "3x8", "--calibration", "my.txt", "--format", "low_rank", "--seed", "5",
        "--protect", "down", "--protect", "block 0$", "--no-evaluate",
        "--cache", str(tmp_path / "cache"), "-o", str(output),
    )  # fmt: skip
    assert code == 0
    assert out == f"wrote {output}\n"
    recipe, options = asked["recipe"], asked["recipe"].stages[0].options
    assert (recipe.model, str(recipe.keep), recipe.seed) == ("demo", "50% of bytes", 5)
    assert (recipe.calibration.text, recipe.calibration.tokens) == ("my.txt", "3x8")
    assert (options.method, options.format, options.refine) == ("truncated_svd", "low_rank", "on")
    assert options.protect == ("down", "block 0$")
    assert (asked["output"], asked["cache"]) == (output, tmp_path / "cache")
    assert (asked["plan"], asked["evaluate"]) == (None, False)


@pytest.mark.parametrize(
    ("said", "size", "minutes"),
    [
        ([], "25% of bytes", None),
        (["--minutes", "30"], "25% of bytes", 30.0),
        (["--size", "40%"], "40% of bytes", None),
        (["--trim-vocabulary", "mine.txt"], "25% of bytes", None),
        (["--method", "truncated_svd"], None, None),
    ],
)
def test_a_quarter_is_asked_for_where_nothing_else_is(
    monkeypatch, tmp_path, capsys, said, size, minutes
):
    asked = {}

    def choose(recipe, size, output, *, minutes, **options):
        asked.update(size=str(size), minutes=minutes)
        return auto.Choice(recipe, "as it is.")

    monkeypatch.setattr("spectrim.verbs.auto.choose", choose)
    monkeypatch.setattr("spectrim.verbs.shrink.shrink", lambda recipe, output, **options: output)
    code, _, _ = run(
        capsys, "shrink", "demo", *said, "--no-evaluate", "-o", str(tmp_path / "small")
    )
    assert code == 0
    assert asked == ({} if size is None else {"size": size, "minutes": minutes})


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["--keep", "60%", "--minutes", "3"], "--minutes is for --size and --fits;"),
        (["--predictions"], "--predictions are of cuts, and a size takes bits;"),
        (["--predictions", "--size", "40%"], "--predictions are of cuts, and a size takes bits;"),
        (["--minutes", "0"], "--minutes 0 leaves no time;"),
        (["--minutes", "nan"], "--minutes nan leaves no time;"),
        (["--for", "llama.cpp", "--size", "40%", "--minutes", "3"], "never learns; leave out"),
    ],
)
def test_options_that_cannot_go_together_are_refused(tmp_path, capsys, said, told):
    code, _, err = run(capsys, "shrink", "demo", *said, "-o", str(tmp_path / "small"))
    assert code == 2 and told in err


def test_scores_are_shown_after_shrinking_and_progress_stays_out_of_the_output(
    monkeypatch, tmp_path, capsys
):

    from spectrim.report import terminal

    def shrink(recipe, output, *, progress, **options):
        progress(1, 2, "decomposing")
        output.mkdir()
        (output / "scores.json").write_text('{"model": "demo"}')
        return output

    shown = []
    monkeypatch.setattr("spectrim.verbs.shrink.shrink", shrink)
    monkeypatch.setattr(terminal, "show", shown.append)
    output = tmp_path / "small"
    code, out, err = run(capsys, "shrink", "demo", "--keep", "60%", "-o", str(output))
    assert (code, shown) == (0, [{"model": "demo"}])
    assert out == f"wrote {output}; open {output / 'report.html'}\n"
    assert "decomposing" in err


def test_evaluate_hands_its_options_on_and_shows_the_scores(monkeypatch, tmp_path, capsys):

    from spectrim.metrics import Evaluation
    from spectrim.report import terminal

    asked, shown = {}, []

    def evaluate(folder, *, progress, **options):
        asked.update(folder=folder, **options)
        return {"model": "demo"}

    monkeypatch.setattr("spectrim.verbs.evaluate.evaluate", evaluate)
    monkeypatch.setattr(terminal, "show", shown.append)
    scores = tmp_path / "scores.json"
    code, _, err = run(
        capsys, "evaluate", "small/", "--text", "held_out.txt", "--text", "b", "--against", "demo",
        "--tokens", "3x8", "--json", str(scores), "--suite", "full", "--tasks", "boolq, copa",
        "--limit", "5", "--data", str(tmp_path), "--seed", "3", "--fresh",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert shown == [{"model": "demo"}]
    assert asked.pop("tasks") == Evaluation(
        suite="full", tasks=("boolq", "copa"), limit=5, data=tmp_path, seed=3, fresh=True
    )
    assert asked == {
        "folder": "small/",
        "text": ["held_out.txt", "b"],
        "against": "demo",
        "tokens": "3x8",
        "cache": None,
        "json_path": scores,
    }


def test_report_writes_beside_the_scores_unless_told_otherwise(monkeypatch, tmp_path, capsys):
    from spectrim.report import page

    written = []
    monkeypatch.setattr(page, "write_page", lambda *given: written.append(given))
    target, others = tmp_path / "x.html", [tmp_path / "2", tmp_path / "3"]
    run(capsys, "report", str(tmp_path))
    run(capsys, "report", str(tmp_path), "-o", str(target))
    run(capsys, "report", str(tmp_path), *map(str, others), "-o", str(target))
    beside = tmp_path / "report.html"
    assert written == [(tmp_path, beside, []), (tmp_path, target, []), (tmp_path, target, others)]


SITES = {
    "model": "small",
    "sites": [
        {"site": "a.q", "block": 0, "role": "q", "out_features": 4, "in_features": 8,
         "format": "pivoted", "rank": 2, "stored": 20, "dense": 32},
        {"site": "a.k", "block": 0, "role": "k", "out_features": 4, "in_features": 8,
         "format": "dense", "rank": 4, "stored": 32, "dense": 32},
    ],
}  # fmt: skip


def test_inspect_shows_what_is_stored_beside_the_dense_shape(monkeypatch, capsys):

    monkeypatch.setattr("spectrim.verbs.inspect.inspect", lambda model, cache: SITES)
    _, out, _ = run(capsys, "inspect", "small")
    rows = {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}
    assert rows["a.q"] == ["q", "4", "x", "8", "pivoted", "2", "20", "62.5%"]
    assert rows["a.k"] == ["k", "4", "x", "8", "dense", "32", "100.0%"]
    assert rows["total"] == ["52", "81.2%"]


def test_inspect_begins_with_totals_by_role(monkeypatch, capsys):

    twice = {**SITES, "sites": [*SITES["sites"], SITES["sites"][0] | {"site": "b.q", "stored": 32}]}
    monkeypatch.setattr("spectrim.verbs.inspect.inspect", lambda model, cache: twice)
    _, out, _ = run(capsys, "inspect", "small")
    assert "q 2 2 52 81.2%" in (said := " ".join(out.split()))
    assert "k 1 0 32 100.0%" in said and said.index("k 1 0 32") < said.index("a.q")


def test_inspect_shows_formats_without_a_rank(monkeypatch, capsys):

    sparse = SITES["sites"][0] | {"format": "block_sparse", "rank": None}
    bare = {key: one for key, one in sparse.items() if key != "rank"} | {"site": "[b]"}
    found = {"model": "[red]small[/red]", "sites": [sparse, bare]}
    monkeypatch.setattr("spectrim.verbs.inspect.inspect", lambda model, cache: found)
    _, out, _ = run(capsys, "inspect", "small")
    assert "a.q q 4 x 8 block_sparse – 20 62.5%" in " ".join(out.split())
    assert "[b] q 4 x 8 block_sparse – 20 62.5%" in " ".join(out.split())
    assert "[red]small[/red]" in out


def test_inspect_prints_json_for_machines(monkeypatch, capsys):

    monkeypatch.setattr("spectrim.verbs.inspect.inspect", lambda model, cache: SITES)
    _, out, _ = run(capsys, "inspect", "small", "--json")
    assert json.loads(out) == SITES


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--limit", "0"], "--limit 0 asks nothing; expected 1 or more"),
        (["--tasks", " ,"], "--tasks names no task; see 'spectrim list tasks'"),
        (["--data", "nowhere"], "there is no folder of data 'nowhere'; check the path"),
        (["--tokens", "7"], "'7' is no amount of tokens"),
    ],
)
def test_what_evaluate_cannot_do_is_said_in_one_line(capsys, arguments, told):
    code, out, err = run(capsys, "evaluate", "small/", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
