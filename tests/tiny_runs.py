"""Tiny models made smaller end to end: texts, recipes, and reading back what was written."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
    Qwen2Tokenizer,
)

import spectrim
from spectrim.curve import Curve
from spectrim.cutting import trial
from spectrim.cutting.allocation import allocate, units
from spectrim.formats.packed import entropy
from spectrim.job.job import Job
from spectrim.model import sources
from spectrim.model.sources import Source
from spectrim.model.weights import quiet
from spectrim.plan import Decision, Plan
from spectrim.recipe.options import Factorize
from spectrim.recipe.recipe import Recipe
from spectrim.verbs.shrink import shrink as whole_shrink
from tiny_folders import tiny_folder
from tiny_models import VOCABULARY, logits, tokens

TOKENS = "12x32"
SEQUENCES = 12 + 2 + 2  # what calibration, search and report take


def write_text(file: Path, *, words: int = 24 * 32, seed: int = 0) -> Path:
    """Write a file of so many random words, each one token of the tiny tokenizer."""
    drawn = random.Random(seed)
    file.write_text(" ".join(f"w{drawn.randrange(3, VOCABULARY)}" for _ in range(words)))
    return file


def family_folder(folder: Path, family: str, *, dtype: torch.dtype = torch.float32) -> Path:
    """Save a tiny model with a tokenizer that transformers loads for its model type."""
    tiny_folder(folder, family, dtype=dtype)
    if family == "qwen2":  # always read as byte pairs; here without a pair, so as characters
        known = ["<unk>", "<s>", "</s>", "w", "Ġ", "Ċ", *"0123456789"]
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
        vocabulary = {word: place for place, word in enumerate(known)}
        Qwen2Tokenizer(vocab=vocabulary, merges=[], **special).save_pretrained(folder)
    return folder


def recipe(source: Path, text: Path, keep: str = "70% of linear", **factorize: object) -> Recipe:
    """Return a small recipe; factorize: options of that stage."""
    changes = {
        "model": str(source),
        "keep": keep,
        "calibration.text": str(text),
        "calibration.tokens": TOKENS,
        **{f"factorize.{name}": value for name, value in factorize.items()},
    }
    return Recipe.build(None, changes)


def without_stages(made: Made) -> Recipe:
    """Return what a size is chosen for: a model and its text, and no stages."""
    return Recipe.model_validate(
        {"model": str(made.source), "calibration": {"text": str(made.text), "tokens": TOKENS}}
    )


def shrink(asked: Recipe, output: Path, plan: Path | None = None) -> Path:
    """Run a recipe with its cache beside the output, without measuring."""
    with quiet():
        return whole_shrink(asked, output, cache=output.parent / "cache", plan=plan, evaluate=False)


@contextmanager
def envelope_kept() -> Iterator[None]:
    """Take the plan of several methods' lower envelope, whatever their true losses say of it."""

    def kept(job: Job, options: Factorize, curves: list[Curve], _: object) -> tuple[Plan, dict]:
        return allocate(job, options, units(job, curves)), {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "mixed", kept)
        yield


def load(folder: Path) -> PreTrainedModel:
    """Return the model in a folder."""
    return sources.model(Source(str(folder), folder, ""))


def stored(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in a folder's weight files, those that are entropy-coded decoded."""
    parts = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    assert sum(len(part) for part in parts) == len({name for part in parts for name in part})
    held = {name: tensor for part in parts for name, tensor in part.items()}
    if not any(map(entropy.is_coded, held)):
        return held
    like = load(folder)
    return {
        entropy.plain_name(name): entropy.decoded(
            tensor, name, like.get_buffer(entropy.plain_name(name))
        )
        if entropy.is_coded(name)
        else tensor
        for name, tensor in held.items()
    }


def plan_of(folder: Path) -> Plan:
    """Return the plan in an output folder."""
    return Plan.read(folder / "plan.json")


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of all files in a folder, those apart that say when or how fast."""
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.name not in ("scores.json", "report.html", "spectrim.json")
    }


def kept(cache: Path, kind: str) -> list[Path]:
    """Return the folders of one kind in a cache, such as "statistics"."""
    return sorted(path for path in (cache / kind).glob("*") if path.is_dir())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two sets of tensors have the same names, types and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@dataclass(frozen=True)
class Made:
    """A tiny model and what was made of it."""

    family: str
    source: Path
    text: Path
    small: Path

    @property
    def folder(self) -> Path:
        return self.small.parent

    def factored(self) -> list[Decision]:
        return [one for one in plan_of(self.small).decisions if one.format != "dense"]


def make(family: str, folder: Path) -> Made:
    """Make a family's tiny model smaller, to 70 %."""
    source = family_folder(folder / "source", family)
    text = write_text(folder / "text.txt")
    return Made(family, source, text, shrink(recipe(source, text), folder / "small"))


def from_pretrained(made: Made, folder: Path) -> PreTrainedModel:
    """Load as users do: spectrim is imported, and nothing else is said."""
    assert spectrim.__version__
    both = made.family.startswith(("bart", "t5"))
    known = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
    with quiet():
        model, report = known.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


def saved_again(made: Made, folder: Path) -> None:
    """Save a smaller model as users do, and assert that what is read back is the same."""
    one = from_pretrained(made, made.small)
    with quiet():
        one.save_pretrained(folder)
    other = from_pretrained(made, folder)
    assert equal(one.state_dict(), other.state_dict())
    assert torch.equal(logits(one, tokens()), logits(other, tokens()))
