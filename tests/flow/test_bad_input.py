"""What users can get wrong, and what their machines can: one line, exit 2, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectrim import cli
from tiny_folders import WEIGHTS, change_config, change_tensors, tiny_folder
from tiny_runs import files, recipe, shrink, write_text

FULL = "the disk is full; free some space and run the same command again to continue"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Place:
    """A folder with a model and a text in it, and the command line run there."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def source(self) -> Path:
        return self.folder / "source"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def small(self) -> Path:
        return self.folder / "small"

    def run(self, *arguments: str | Path) -> tuple[int, str]:
        """Return exit code and standard error."""
        with pytest.raises(SystemExit) as leaving:
            cli.main([str(argument) for argument in arguments])
        return leaving.value.code, self.capsys.readouterr().err

    def shrink(self, *options: str | Path, cache: Path | None = None) -> tuple[int, str]:
        """Shrink as asked, options said again taking the place of the usual ones."""
        asked = {
            "--keep": "70% of linear",
            "--calibration": self.text,
            "--tokens": "12x32",
            "--cache": cache or self.folder / "cache",
            "-o": self.small,
        }
        given = dict(zip(options[::2], options[1::2], strict=True))
        if "--plan" in given:
            asked = {name: asked[name] for name in ("--cache", "-o")}
        words = [word for pair in {**asked, **given}.items() for word in pair]
        return self.run("shrink", self.source, "--no-evaluate", *words)

    def refused(self, told: str, *options: str | Path) -> None:
        """Assert that shrinking ends in this one line and leaves no trace."""
        before = sorted(self.folder.iterdir())
        code, err = self.shrink(*options)
        assert_told(code, err, told)
        assert [path for path in sorted(self.folder.iterdir()) if path not in before] in (
            [],
            [self.folder / "cache"],
        )
        assert_clean(self.folder)


def assert_told(code: int, err: str, told: str) -> None:
    """The error is the last line and one line; before it only what was being done."""
    *doing, line = err.splitlines()
    assert code == 2, err
    assert line.startswith("spectrim: error: ") and told in line, err
    assert all(one.endswith(" ...") for one in doing), err


def assert_clean(folder: Path) -> None:
    """No half-written file or folder, and nothing of this run alone, is left."""
    assert not [path for path in folder.rglob("*") if "partial" in path.name]
    assert not list((folder / "cache" / "work").glob("*"))


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    made = Place(tmp_path, capsys)
    tiny_folder(made.source)
    write_text(made.text)
    return made


# options

OPTIONS = [
    ("--keep", "0", "keep '0' is out of range; keep more than 0% and at most 100%"),
    ("--keep", "300%", "keep '300%' is out of range; keep more than 0% and at most 100%"),
    ("--keep", "5% of linear", "cannot keep 5% of linear: what is not factored and the smallest "
     "cuts take 28.8% already; keep more or protect less"),
    ("--keep", "20%", "cannot keep 20% of bytes: "),
    ("--protect", "self_attn|mlp", "keep more or protect less"),
    ("--method", "whitened_svdd", "no method named 'whitened_svdd'; did you mean 'whitened_svd'?"),
    ("--allocator", "fair", "no allocator named 'fair'; allocators: global, uniform"),
    ("--format", "sparse", "no format named 'sparse'; formats: low_rank, pivoted"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "value", "told"), OPTIONS)
def test_an_option_that_cannot_be(place: Place, option: str, value: str, told: str) -> None:
    place.refused(told, option, value)


# text

TEXTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("text.txt", b"", "text.txt is empty; calibration and evaluation need text"),
    "blank": ("text.txt", b" \n\n", "text.txt is empty; calibration and evaluation need text"),
    "short": (
        "text.txt",
        b"w5 " * 100,
        "text.txt gives 3 sequences of 32 tokens and 16 are needed (12 for calibration, 2 for "
        "search, 2 for the report); bring more text",
    ),
    "shorter": ("text.txt", b"w5 w6", "text.txt gives 1 sequences of 32 tokens and 16 are needed"),
    "repeating": (
        "text.txt",
        b"w5 w6 w7 w8 " * 200,
        "the calibration and the report split share 100% of their text",
    ),
    "binary": ("text.txt", b"\xff\xfe\x00w5", "text.txt is not UTF-8 text"),
    "no column": (
        "text.jsonl",
        b'{"text": "w5"}\n{"words": "w5"}\n',
        "line 2 of ",
    ),
    "no JSON": ("text.jsonl", b"w5 w6\n", "text.jsonl is not JSON"),
    "a number": ("text.jsonl", b'{"text": 5}\n', "text.jsonl is no text; expected a string"),
    "no object": ("text.jsonl", b"5\n", "has no text; expected one of text, content, messages"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_is_none(place: Place, case: str) -> None:
    name, content, told = TEXTS[case]
    (place.folder / name).write_bytes(content)
    place.refused(told, "--calibration", place.folder / name)


def test_a_text_that_is_not_there(place: Place) -> None:
    missing = place.folder / "none.txt"
    place.refused(f"there is no text file {missing}; check the path", "--calibration", missing)
    place.refused(f"{place.source} is a folder; give", "--calibration", place.source)


# models


def cut_off(source: Path) -> None:
    file = source / WEIGHTS
    os.truncate(file, file.stat().st_size - 1000)


def corrupt(source: Path) -> None:
    file = source / WEIGHTS
    file.write_bytes(b"\xff" * 64 + file.read_bytes()[64:])


def not_a_number(name: str) -> Callable[[Path], None]:
    def spoil(source: Path) -> None:
        def change(held: dict[str, Tensor]) -> None:
            held[name].view(-1)[7] = torch.nan

        change_tensors(source, change)

    return spoil


def without_a_shard(source: Path) -> None:
    for file in source.iterdir():
        file.unlink()
    tiny_folder(source, shard="100KB")
    sorted(source.glob("*.safetensors"))[1].unlink()


def with_a_cut_off_shard(source: Path) -> None:
    for file in source.iterdir():
        file.unlink()
    tiny_folder(source, shard="100KB")
    shard = sorted(source.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size // 2)


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut off": (cut_off, "model.safetensors is cut off"),
    "corrupt": (corrupt, "model.safetensors is cut off inside its header, or no safetensors file"),
    "shard missing": (without_a_shard, "is missing; fetch the model again"),
    "shard cut off": (with_a_cut_off_shard, "is cut off"),
    "NaN in the embedding": (
        not_a_number("model.embed_tokens.weight"),
        "tensor 'model.embed_tokens.weight' in ",
    ),
    "NaN in a block": (
        not_a_number("model.layers.2.mlp.up_proj.weight"),
        "tensor 'model.layers.2.mlp.up_proj.weight' in ",
    ),
    "unsupported": (
        lambda source: change_config(source, model_type="mamba"),
        "model type 'mamba' is not supported",
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_is_broken(place: Place, case: str) -> None:
    spoil, told = MODELS[case]
    spoil(place.source)
    place.refused(told)
    assert not list((place.folder / "cache" / "statistics").glob("*")), "of no use to anyone"


def test_a_model_that_is_small_already(place: Place) -> None:
    small = shrink(recipe(place.source, place.text), place.folder / "smaller")
    told = f"{small} is a smaller model already; shrink the model that it was made from"
    (place.folder / "source").rename(place.folder / "dense")
    small.rename(place.source)
    place.refused(told.replace(str(small), str(place.source)))


def test_what_kept_everything_may_be_shrunk_again(place: Place) -> None:
    """It is an ordinary model; what its first run recorded is not taken for the second's."""
    whole = shrink(recipe(place.source, place.text, "100% of linear"), place.folder / "whole")
    (whole / "scores.json").write_text("{}")
    again = shrink(recipe(whole, place.text), place.folder / "again")
    alone = shrink(recipe(place.source, place.text), place.folder / "alone")
    assert (again / WEIGHTS).read_bytes() == (alone / WEIGHTS).read_bytes()
    assert not (again / "scores.json").exists()


# plans


def plan_for(place: Place, family: str = "llama") -> Path:
    source = tiny_folder(place.folder / "planned", family)
    made = shrink(recipe(source, place.text), place.folder / "made")
    return (made / "plan.json").rename(place.folder / "plan.json")


def change_plan(plan: Path, **values: object) -> None:
    said = json.loads(plan.read_text())
    said["decisions"][3].update(values)
    plan.write_text(json.dumps(said))


def test_a_plan_for_another_model(place: Place) -> None:
    plan = plan_for(place, "qwen3")
    place.refused("the plan does not fit the model: model.layers.0.self_attn.q_proj is 64 x 48 in "
                  "the plan and 48 x 48 in the model", "--plan", plan)  # fmt: skip


def test_a_plan_of_another_architecture(place: Place) -> None:
    plan = plan_for(place, "gpt2")
    told = "the plan does not fit the model: transformer.h.0.attn.c_attn is 144 x 48 in the plan "
    place.refused(told + "and not in the model", "--plan", plan)


PLANS = [
    ({"format": "sparse"}, "no format named 'sparse'"),
    ({"rank": 49}, "the plan gives model.layers.0.self_attn.o_proj rank 49; expected 1 to 48"),
    ({"rank": 0}, "the plan gives model.layers.0.self_attn.o_proj rank 0; expected 1 to 48"),
    ({"rank": "many"}, "rank of model.layers.0.self_attn.o_proj is 'many' and no whole number"),
    ({"site": "model.layers.0.self_attn.x_proj"}, "model.layers.0.self_attn.x_proj is 48 x 48 in "
     "the plan and not in the model"),
    ({"colour": "red"}, "is not a plan"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "told"), PLANS)
def test_a_plan_with_a_mistake(place: Place, changes: dict[str, object], told: str) -> None:
    plan = plan_for(place)
    change_plan(plan, **changes)
    place.refused(told, "--plan", plan)


def test_a_plan_that_forgets_a_site(place: Place) -> None:
    plan = plan_for(place)
    said = json.loads(plan.read_text())
    forgotten = said["decisions"].pop()["site"]
    plan.write_text(json.dumps(said))
    place.refused(f"the plan says nothing about {forgotten}", "--plan", plan)


def test_a_plan_that_is_none(place: Place) -> None:
    plan = place.folder / "plan.json"
    plan.write_text("pivoted everywhere")
    place.refused(f"{plan} is not a plan", "--plan", plan)
    plan.write_text("[]")
    place.refused(f"{plan} is not a plan", "--plan", plan)
    plan.write_text('{"decisions": [], "version": 9, "predicted_loss": 0}')
    place.refused(f"{plan} is a plan of version 9; this reads 1", "--plan", plan)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--calibration", "my.txt"), ("--tokens", "3x8"), ("--seed", "1"), ("--protect", "down"),
     ("--refine", "off"), ("--keep", "60%"), ("--method", "truncated_svd")],
)  # fmt: skip
def test_a_plan_says_it_already(place: Place, option: str, value: str) -> None:
    plan = place.folder / "plan.json"
    plan.write_text("{}")
    name = option.removeprefix("--")
    told = f"--plan already says the {name}; leave out {option}"
    place.refused(told, "--plan", plan, option, value)


# outputs


def test_a_folder_that_is_not_ours_is_not_replaced(place: Place) -> None:
    other = place.folder / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    told = f"{other} is there already and was not written by spectrim; name another output"
    place.refused(told, "-o", other)
    assert (other / "thesis.tex").read_text() == "years of work"
    place.refused(f"{place.text} is there already", "-o", place.text)


def test_the_model_is_not_replaced_by_what_is_made_of_it(place: Place) -> None:
    before = files(place.source)
    told = "holds the model that is read; name another output"
    place.refused(told, "-o", place.source)
    place.refused(told, "-o", place.folder)
    assert files(place.source) == before


def test_an_earlier_output_is_replaced_and_an_empty_folder_filled(place: Place) -> None:
    place.small.mkdir()
    for _ in range(2):
        code, err = place.shrink()
        assert code == 0, err
    assert_clean(place.folder)
    assert not list(place.folder.glob(".*"))


def mounted(folder: Path, options: str) -> bool:
    """Return whether a file system of its own could be mounted there, as root can."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    if not mounted(folder, "size=4m"):
        pytest.skip("only root can mount a disk of its own")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(disk)], check=True)


def test_a_read_only_disk(place: Place, disk: Path) -> None:
    resize(disk, "ro")
    place.refused(f"cannot write '{disk / 'small'}'; Read-only file system", "-o", disk / "small")
    place.refused("Read-only file system", "--cache", disk / "cache")


def test_an_output_where_nothing_can_be(place: Place) -> None:
    place.refused("cannot write '/proc/small'; ", "-o", "/proc/small")
    place.refused(f"cannot write '{place.text / 'small'}'; Not a directory: ",
                  "-o", place.text / "small")  # fmt: skip
    place.refused("cannot use '/proc/cache'; ", "--cache", "/proc/cache")


def test_a_disk_too_full_for_the_output(place: Place, disk: Path) -> None:
    whole = files(shrink(recipe(place.source, place.text), place.small))
    for size in ("8k", "100k", "200k"):
        resize(disk, f"size={size}")
        assert_told(*place.shrink("-o", disk / "small"), FULL)
        assert list(disk.iterdir()) == []
        assert_clean(place.folder)
    resize(disk, "size=4m")
    assert place.shrink("-o", disk / "small")[0] == 0
    assert files(disk / "small") == whole


def test_a_disk_too_full_for_the_cache(place: Place, disk: Path) -> None:
    """Each size is too little for another step; the last one is enough, and continues."""
    for size in range(40, 2000, 120):
        resize(disk, f"size={size}k")
        code, err = place.shrink(cache=disk)
        if code == 0:
            break
        assert_told(code, err, FULL)
        assert not place.small.exists()
        assert not [path for path in disk.rglob("*") if "partial" in path.name]
        assert not list((disk / "work").glob("*"))
    else:
        pytest.fail("2 MB are enough")
    assert size > 400
    (place.folder / "alone").mkdir()
    alone = shrink(recipe(place.source, place.text), place.folder / "alone" / "small")
    assert files(place.small) == files(alone)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """Stand in for a full disk where none can be mounted."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [2_000, 20_000, 40_000, 100_000, 200_000])
def test_files_that_may_not_grow(place: Place, size: int) -> None:
    with no_file_larger_than(size):
        code, err = place.shrink()
    assert_told(code, err, FULL)
    assert not place.small.exists()
    assert_clean(place.folder)


# measuring


def test_measuring_on_the_calibration_text(place: Place) -> None:
    small = shrink(recipe(place.source, place.text), place.small)
    scores = place.folder / "scores.json"
    other = write_text(place.folder / "other.txt", seed=1)
    # wholly known, and known text among much that is new
    part = place.folder / "part.txt"
    words = place.text.read_text().split()
    part.write_text(" ".join(other.read_text().split() * 3 + words[:96]))
    for text, tokens in ((place.text, "4x32"), (part, "75x32")):
        code, err = place.run("evaluate", small, "--text", text, "--tokens", tokens, "--cache",
                              place.folder / "cache", "--json", scores)  # fmt: skip
        assert_told(code, err, f"{text} and the text that {small} was calibrated on share ")
        assert not scores.exists()


EVALUATIONS = [
    (["--tokens", "400x32"], "gives 24 full windows of 32 tokens and 400 are wanted"),
    (["--tokens", "1x2000"], "gives 0 full windows of 2000 tokens and 1 are wanted"),
    (["--text", "none.txt"], "there is no text file none.txt"),
    (["--against", "./none"], "there is no folder or file ./none"),
]


@pytest.mark.parametrize(("options", "told"), EVALUATIONS)
def test_measuring_what_cannot_be(place: Place, options: list[str], told: str) -> None:
    small = shrink(recipe(place.source, place.text), place.small)
    asked = {"--text": str(write_text(place.folder / "other.txt", seed=1)), "--tokens": "4x32"}
    asked |= {options[0]: options[1], "--cache": str(place.folder / "cache")}
    words = [word for pair in asked.items() for word in pair]
    assert_told(*place.run("evaluate", small, *words), told)


def test_measuring_what_does_not_say_what_it_was_made_from(place: Place) -> None:
    told = f"{place.source} does not say what it was made from; name a model with --against"
    options = ("--text", place.text, "--cache", place.folder / "cache")
    assert_told(*place.run("evaluate", place.source, *options), told)
