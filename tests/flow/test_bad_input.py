"""What users can get wrong in a command: one line, exit 2, nothing left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spectrim.model import sources
from spectrim.model.sources import Source
from tiny_folders import WEIGHTS, change_config, change_tensors, tiny_folder
from tiny_places import Place, assert_told
from tiny_runs import kept, recipe, shrink, write_text

# options

OPTIONS = [
    ("--keep", "0", "keep '0' is out of range; keep more than 0% and at most 100%"),
    ("--keep", "300%", "keep '300%' is out of range; keep more than 0% and at most 100%"),
    ("--keep", "5% of linear", "cannot keep 5% of linear: what is not factored and the smallest "
     "cuts take 28.8% already; keep more or protect less"),
    ("--keep", "20%", "cannot keep 20% of bytes: "),
    ("--protect", "self_attn|mlp", "keep more or protect less"),
    ("--method", "whitened_svdd", "no method named 'whitened_svdd'; did you mean 'whitened_svd'?"),
    ("--allocator", "fair", "no allocator named 'fair'; allocators: break_even, energy, global, "),
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


@pytest.mark.parametrize("verb", ["shrink", "evaluate"])
def test_a_text_that_the_model_cannot_read(place: Place, verb: str) -> None:
    """Its sequences are longer than a table of positions, or it has a token without a row."""
    source = tiny_folder(place.folder / "gpt2", "gpt2")
    asked = {"shrink": ("shrink", source, "--no-evaluate", "-o", place.small),
             "evaluate": ("evaluate", source, "--against", source)}[verb]  # fmt: skip
    text = "--calibration" if verb == "shrink" else "--text"
    common = (*asked, "--cache", place.folder / "cache", "--tokens")
    told = f"{source} has 64 positions; ask for sequences of at most 64 tokens with --tokens"
    assert_told(*place.run(*common, "12x65", text, place.text), told)
    words = sources.tokenizer(Source("", source, ""))
    words.add_tokens(["<call>"])
    words.save_pretrained(source)
    place.text.write_text("<call> " * 9 + place.text.read_text())
    told = "has '<call>', token 112 of the tokenizer, but the embedding of "
    assert_told(*place.run(*common, "12x32", text, place.text), told)
    assert not place.small.exists()


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
    assert not kept(place.folder / "cache", "statistics"), "of no use to anyone"


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


def test_a_plan_of_another_model_of_the_same_shape(place: Place) -> None:
    plan = plan_for(place)
    change_tensors(place.source, lambda held: {name: t + 1 for name, t in held.items()})
    told = "the plan was made with another model, so it cannot be replayed; bring the same one, or "
    place.refused(told + "take the entry 'fingerprint' out of the plan", "--plan", plan)


def test_a_plan_of_another_text(place: Place) -> None:
    plan = plan_for(place)
    write_text(place.text, seed=1)
    place.refused("the plan was made with another calibration text, so it cannot be replayed; "
                  "bring the same one, or take the entry 'statistics' out of the plan",
                  "--plan", plan)  # fmt: skip


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
    place.refused(f"{plan} is a plan of version 9; this reads 2", "--plan", plan)


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
