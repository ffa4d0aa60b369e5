import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from spectrim.errors import SpectrimError
from spectrim.recipe.recipe import Calibration, Factorize, Keep, Recipe, Stage
from spectrim.registry import Registry


def read(tmp_path: Path, text: str) -> Recipe:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return Recipe.from_yaml(file)


def message(call, *arguments) -> str:
    with pytest.raises(SpectrimError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# keep


@pytest.mark.parametrize(
    ("text", "fraction", "of"),
    [
        ("80% of linear", 0.8, "linear"),
        ("60% of bytes", 0.6, "bytes"),
        ("60%", 0.6, "bytes"),
        (" 33.3 %  of linear ", 0.333, "linear"),
        ("100%", 1.0, "bytes"),
        ("0.5%", 0.005, "bytes"),
    ],
)
def test_keep_is_read(text, fraction, of):
    keep = Keep.parse(text)
    assert keep.fraction == pytest.approx(fraction, rel=1e-12)
    assert keep.of == of


@pytest.mark.parametrize("text", ["0", "0%", "0% of linear", "300%", "100.01%", "-5%"])
def test_keep_out_of_range_says_the_range(text):
    expected = f"keep '{text}' is out of range; keep more than 0% and at most 100%"
    assert message(Keep.parse, text) == expected


@pytest.mark.parametrize("text", ["0.6", "60", "much", "", "% of linear", "60% linear", "60%%"])
def test_keep_without_its_unit_says_how_to_write_it(text):
    assert message(Keep.parse, text) == (
        f"cannot read keep '{text}'; write the part that stays with its unit, "
        "such as '80% of linear' or '60% of bytes'"
    )


def test_keep_of_something_else_suggests_the_nearest():
    expected = (
        "cannot keep a part of 'lineer'; did you mean 'linear'? (linear, linear bytes, bytes)"
    )
    assert message(Keep.parse, "80% of lineer") == expected
    assert (
        message(Keep.parse, "80% of x")
        == "cannot keep a part of 'x'; (linear, linear bytes, bytes)"
    )


@given(some.integers(1, 10**8), some.sampled_from(["linear", "bytes"]))
def test_keep_survives_being_written(millionths, of):
    keep = Keep.parse(f"{millionths / 10**6:.6f}% of {of}")
    assert Keep.parse(str(keep)) == keep


# calibration


def test_calibration_tells_its_amounts():
    calibration = Calibration.parse("a.txt", "12x34")
    assert (calibration.text, calibration.sequences, calibration.length) == ("a.txt", 12, 34)


# recipes


def test_an_empty_recipe_is_the_default_one(tmp_path):
    recipe = read(tmp_path, "model: demo")
    assert recipe == Recipe(model="demo")
    assert str(recipe.keep) == "80% of linear"
    assert [stage.name for stage in recipe.stages] == ["factorize"]
    assert recipe.stages[0].options == Factorize()


def test_a_recipe_survives_being_written(tmp_path):
    recipe = Recipe.build(
        None,
        {
            "model": "a/b",
            "keep": "61.5% of bytes",
            "calibration.text": "ä.txt",
            "calibration.tokens": "3x8",
            "factorize.method": "whitened_svd",
            "factorize.refine": "off",
            "factorize.protect": ["down", "block 0$"],
            "factorize.damp_input": 3e-7,
            "seed": 7,
            "trust_remote_code": True,
        },
    )
    assert read(tmp_path, recipe.to_yaml()) == recipe


def test_short_forms_mean_the_long_ones(tmp_path):
    short = read(tmp_path, "model: demo\nkeep: 60%\ncalibration: a.txt\nstages: [factorize]")
    long = read(
        tmp_path,
        "model: demo\nkeep: {fraction: 0.6, of: bytes}\n"
        "calibration: {text: a.txt, tokens: 48x1024}\nstages:\n  - factorize: {}",
    )
    assert short == long


def test_bare_on_and_off_of_yaml_are_switches(tmp_path):
    for word in ("on", "off", "auto"):
        recipe = read(tmp_path, f"model: demo\nstages: [factorize: {{refine: {word}}}]")
        assert recipe.stages[0].options.refine == word


def test_a_recipe_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="frozen"):
        Recipe(model="demo").seed = 3


KEYS = "(keys: model, keep, calibration, stages, seed, trust_remote_code)"
OPTIONS = "(keys: " + ", ".join(Factorize.model_fields) + ")"
ALLOCATORS = f"(allocators: {', '.join(Registry('allocator', 'spectrim.allocators').names())})"
METHODS = f"(methods: {', '.join(Registry('method', 'spectrim.methods').names())})"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("modell: demo", f"unknown key 'modell' in the recipe; did you mean 'model'? {KEYS}"),
        ("zzz: 1", f"unknown key 'zzz' in the recipe; {KEYS}"),
        (
            "calibration: {tokns: 3x8}",
            "unknown key 'tokns' in calibration of the recipe; did you mean 'tokens'? "
            "(keys: text, tokens)",
        ),
        (
            "stages: [factorize: {methood: x}]",
            f"unknown key 'methood' in stage factorize; did you mean 'method'? {OPTIONS}",
        ),
        (
            "stages: [factorize: {method: whitened_svdd}]",
            f"no method named 'whitened_svdd'; did you mean 'whitened_svd'? {METHODS}",
        ),
        (
            "stages: [factorize: {allocator: globe}]",
            f"no allocator named 'globe'; did you mean 'global'? {ALLOCATORS}",
        ),
        (
            "stages: [factorize: {format: lowrank}]",
            "no format named 'lowrank'; did you mean 'low_rank'? (formats: low_rank, pivoted)",
        ),
        (
            "stages: [factorize: {format: tensor_train}]",
            "format 'tensor_train' comes with its own method; choose that method, or one of "
            "low_rank, pivoted",
        ),
        ("stages: [factorise]", "no stage named 'factorise'; did you mean 'factorize'?"),
        (
            "stages: [factorize: {refine: maybe}]",
            "refine of stage factorize cannot be 'maybe'; it should be 'auto', 'on' or 'off'",
        ),
        (
            "stages: [factorize: {damp_gradient: -1}]",
            "damp_gradient of stage factorize cannot be -1; "
            "it should be greater than or equal to 0",
        ),
        (
            "stages: [factorize: {protect: ['(']}]",
            "'(' is no regular expression (missing ), unterminated subpattern at position 0); "
            "write one, such as 'down' or 'block 0$'",
        ),
        (
            "stages: [factorize: 3]",
            "stage factorize cannot be 3; it should be 'key: value' lines",
        ),
        (
            "stages: [{factorize: {}, heal: {}}]",
            "a stage has one name, not 2 (factorize, heal); "
            "write each as a list item of its own, '- factorize: {method: ...}'",
        ),
        ("stages: []", "stages of the recipe cannot be []; List should have at least 1 item"),
        ("keep: 300%", "keep '300%' is out of range; keep more than 0% and at most 100%"),
        ("keep: yes", "keep of the recipe cannot be True; it should be 'key: value' lines"),
        (
            "keep: {fraction: 5}",
            "keep.fraction of the recipe cannot be 5; it should be less than or equal to 1",
        ),
        ("seed: -1", "seed of the recipe cannot be -1; it should be greater than or equal to 0"),
        ("- model", "this is a list; a recipe is 'key: value' lines"),
    ],
)
def test_a_wrong_recipe_says_where_and_what(tmp_path, text, expected):
    found = message(read, tmp_path, text)
    assert found.startswith(f"{tmp_path / 'recipe.yaml'}: {expected}")


def test_a_recipe_needs_a_model(tmp_path):
    assert message(read, tmp_path, "seed: 1") == "the recipe lacks 'model'; add it"


def test_a_recipe_file_has_to_be_there_and_to_be_yaml(tmp_path):
    missing = tmp_path / "none.yaml"
    expected = f"there is no recipe file '{missing}'; check the path"
    assert message(Recipe.from_yaml, missing) == expected
    assert message(Recipe.from_yaml, tmp_path).startswith(f"cannot read recipe '{tmp_path}'; ")
    broken = message(read, tmp_path, "model: [")
    assert broken.startswith(f"cannot read recipe '{tmp_path / 'recipe.yaml'}'; it should be YAML")


# changes on top of a recipe


def test_changes_win_over_the_file_and_none_changes_nothing(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        "model: a\nkeep: 50%\ncalibration: a.txt\nstages: [factorize: {method: whitened_svd}]"
    )
    changes = {
        "model": "b",
        "keep": None,
        "calibration.tokens": "3x8",
        "factorize.format": "low_rank",
        "factorize.method": None,
    }
    recipe = Recipe.build(file, changes)
    assert recipe.model == "b"
    assert str(recipe.keep) == "50% of bytes"
    assert recipe.calibration == Calibration(text="a.txt", tokens="3x8")
    assert recipe.stages == [
        Stage(name="factorize", options=Factorize(method="whitened_svd", format="low_rank"))
    ]


def test_changes_are_checked_like_the_file():
    found = message(Recipe.build, None, {"model": "a", "factorize.method": "whitened_svdd"})
    assert found == f"no method named 'whitened_svdd'; did you mean 'whitened_svd'? {METHODS}"


def test_a_change_of_a_stage_that_is_not_there_is_refused():
    found = message(Recipe.build, None, {"model": "a", "heal.steps": 3})
    assert found == "the recipe has no stage heal; leave out steps, or add the stage"


@pytest.fixture
def extra_stages(tmp_path):
    """A folder whose modules are stages too."""
    import spectrim.stages

    spectrim.stages.__path__.append(str(tmp_path))
    yield tmp_path
    spectrim.stages.__path__.remove(str(tmp_path))
    sys.modules.pop("spectrim.stages.polish", None)


def test_a_stage_that_brings_its_own_options_has_them_checked(extra_stages):
    (extra_stages / "polish.py").write_text(
        "from spectrim.recipe.options import Part\n"
        "class Options(Part):\n    cloth: str = 'soft'\n"
        "def polish(job, options): ...\n"
    )
    recipe = Recipe.build(None, {"model": "a", "stages": [{"polish": {"cloth": "rough"}}]})
    assert recipe.stages[0].options.cloth == "rough"
    found = message(Recipe.build, None, {"model": "a", "stages": [{"polish": {"clot": 1}}]})
    assert found == "unknown key 'clot' in stage polish; did you mean 'cloth'? (keys: cloth)"
