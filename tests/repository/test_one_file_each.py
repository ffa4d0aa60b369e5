"""A plug-in is one file, a family one entry of a table: proven in a copy of the package.

Each test adds one thing to the copy and nothing else, sees that it is listed, and runs it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from spectrim.model.weights import quiet
from tiny_folders import tiny_folder
from tiny_models import VOCABULARY
from tiny_runs import plan_of, write_text

METHOD = '''
"""The eigenvectors of W Wᵀ, a detour to the singular value decomposition."""

import torch

from spectrim.methods import tail_losses, two_factors


def eigen(weight, statistics, *, damping):
    """Return W = U (Uᵀ W), its largest directions first."""
    values, vectors = torch.linalg.eigh(weight.double() @ weight.double().T)
    kept = min(weight.shape)
    left, roots = vectors.flip(1)[:, :kept], values.flip(0)[:kept].clamp_min(0).sqrt()
    return two_factors(left, left.T @ weight.double(), roots, tail_losses(roots, 1.0))
'''
FORMAT = '''
"""Two factors, both stored with the rank first."""

import torch
from torch import nn

from spectrim.formats import TwoFactors


class RankFirst(TwoFactors):
    """W = second.T @ first with first [rank, in] and second [rank, out]."""

    def __init__(self, in_features, out_features, rank, bias):
        super().__init__(in_features, out_features, rank, bias)
        self.first = nn.Parameter(torch.empty(rank, in_features))
        self.second = nn.Parameter(torch.empty(rank, out_features))

    @classmethod
    def numbers(cls, out_features, in_features, rank):
        return rank * (out_features + in_features)

    def fill(self, left, right):
        self.second.copy_(left.T)
        self.first.copy_(right)

    def apply_factors(self, x):
        return x @ self.first.T @ self.second

    def left(self):
        return self.second.T

    def right(self):
        return self.first
'''
ALLOCATOR = '''
"""Every map its smallest cut, then larger ones in turn while they fit."""


def in_turn(curves, budget, measure=None):
    """Return for every curve the index of its cut."""
    chosen = [0] * len(curves)
    size = sum(float(curve.sizes[0]) for curve in curves)
    for at, curve in enumerate(curves):
        for cut in range(1, len(curve.sizes)):
            more = float(curve.sizes[cut] - curve.sizes[chosen[at]])
            if size + more <= budget:
                chosen[at], size = cut, size + more
    return chosen
'''
METRIC = '''
"""How many vectors a model has: norms and biases."""

from spectrim.metrics import Score


def measure(pair):
    """Return the count of every model."""
    return {
        label: [Score("vectors", sum(p.dim() == 1 for p in model.parameters()), "count", "none")]
        for label, model in pair.models.items()
    }
'''
STAGE = '''
"""Clip large weights."""

import torch
from pydantic import Field

from spectrim.job.blocks import go_on_with, current_block, write_block, next_step
from spectrim.job.job import dense_plan
from spectrim.recipe.options import Part

LEAVES = ("changed maps",)
NOTE = "clipped"
REPORT = "Weights were clipped to {largest:fixed}[numbers|, {numbers} of them]."


class Options(Part):
    """The stage that clips.

    largest: size of what stays.
    """

    largest: float = Field(default=0.1, gt=0)


def clip(job, options):
    """Go on with blocks whose matrices are clipped."""
    job.plan = job.plan or dense_plan(job)
    folder, numbers = next_step(job, "clip"), 0
    for place in job.each_block():
        block = current_block(job, place, torch.float32)
        for parameter in block.parameters():
            if parameter.dim() > 1:
                numbers += int((parameter.abs() > options.largest).sum())
                parameter.data.clamp_(-options.largest, options.largest)
        write_block(job, folder, place, block)
    go_on_with(job, folder)
    job.notes[NOTE] = {"largest": options.largest, "numbers": numbers}
'''


LOAD = """
import spectrim
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("small")
assert any(type(module).__name__ == "RankFirst" for module in model.modules())
"""


@dataclass
class Copy:
    """A copy of the package, with a tiny model and a text beside it."""

    folder: Path
    source: Path
    text: Path

    def add(self, place: str, text: str) -> None:
        """Write the one file."""
        file = self.folder / "spectrim" / place
        assert file.parent.is_dir() and not file.exists()
        file.write_text(text.lstrip())

    def run(self, *arguments: str | Path, fails: bool = False) -> str:
        """Run the command line of the copy and return what it printed."""
        return self.python("-m", "spectrim", *map(str, arguments), fails=fails)

    def python(self, *arguments: str, fails: bool = False) -> str:
        """Run Python with the copy in the place of the package."""
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 2 if fails else done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def shrink(
        self, *arguments: str | Path, source: Path | None = None, fails: bool = False
    ) -> str:
        """Make a tiny model smaller, without measuring it."""
        common = ["--calibration", self.text, "--tokens", "12x32", "--no-evaluate"]
        common += ["--cache", self.folder / "cache", "-o", self.folder / "small"]
        return self.run("shrink", source or self.source, *common, *arguments, fails=fails)

    @property
    def small(self) -> Path:
        """Where the smaller model lies."""
        return self.folder / "small"


@pytest.fixture
def copy(tmp_path: Path, root: Path) -> Copy:
    """Return a copy of the package as it is."""
    shutil.copytree(root / "src" / "spectrim", tmp_path / "spectrim")
    text = write_text(tmp_path / "text.txt")
    return Copy(tmp_path, tiny_folder(tmp_path / "source"), text)


def test_a_method_is_one_file(copy: Copy) -> None:
    copy.add("methods/eigen.py", METHOD)
    assert "eigen" in copy.run("list", "methods")
    copy.shrink("--method", "eigen", "--keep", "70% of linear")
    cut = [one for one in plan_of(copy.small).decisions if one.format != "dense"]
    assert cut and {one.method for one in cut} == {"eigen"}


def test_a_format_is_one_file(copy: Copy) -> None:
    copy.add("formats/rank_first.py", FORMAT)
    assert "rank_first" in copy.run("list", "formats")
    copy.shrink("--format", "rank_first", "--keep", "70% of linear")
    made = {one.format for one in plan_of(copy.small).decisions} - {"dense"}
    assert made == {"rank_first"}
    copy.python("-c", LOAD)


def test_an_allocator_is_one_file(copy: Copy) -> None:
    copy.add("allocators/in_turn.py", ALLOCATOR)
    assert "in_turn" in copy.run("list", "allocators")
    copy.shrink("--allocator", "in_turn", "--keep", "70% of linear")
    decisions = plan_of(copy.small).decisions
    sizes = [sum(getattr(one, key) for one in decisions) for key in ("stored", "dense")]
    assert 0.6 < sizes[0] / sizes[1] <= 0.7


def test_a_metric_is_one_file(copy: Copy) -> None:
    copy.add("metrics/vectors.py", METRIC)
    assert "vectors" in copy.run("list", "metrics")
    scores = copy.folder / "scores.json"
    asked = ["--text", copy.text, "--tokens", "4x32", "--json", scores]
    asked += ["--against", copy.source, "--cache", copy.folder / "cache"]
    copy.run("evaluate", copy.source, *asked)
    for row in json.loads(scores.read_text())["rows"]:
        assert row["vectors"]["value"] == 7, row["label"]  # two norms in each of three blocks


def test_a_stage_is_one_file(copy: Copy) -> None:
    copy.add("stages/clip.py", STAGE)
    assert "Clip large weights." in copy.run("list", "stages")
    recipe = copy.folder / "recipe.yaml"
    recipe.write_text("stages: [clip, {drop_blocks: {drop: 1}}]\n")
    refused = copy.shrink("--recipe", recipe, fails=True)
    assert "drop_blocks takes a model with whole maps" in refused
    recipe.write_text("stages: [{clip: {most: 1}}]\n")
    assert "unknown key 'most' in stage clip" in copy.shrink("--recipe", recipe, fails=True)
    recipe.write_text("stages: [{clip: {largest: 0.125}}]\n")
    copy.shrink("--recipe", recipe)
    assert plan_of(copy.small).about["found"]["clipped"]["numbers"] > 0
    assert "Weights were clipped to 0.125" in (copy.small / "README.md").read_text()


def test_a_family_is_one_entry(copy: Copy) -> None:
    table = copy.folder / "spectrim" / "model" / "architectures.py"
    before = table.read_text()
    table.write_text(
        before.replace('    "opt": _OPT,\n', '    "olmo": _LLAMA,\n    "opt": _OPT,\n')
    )
    assert len(table.read_text().splitlines()) == len(before.splitlines()) + 1
    assert "olmo" in copy.run("list", "families")
    config = AutoConfig.for_model(
        "olmo",
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
    )
    with quiet():
        AutoModelForCausalLM.from_config(config).save_pretrained(copy.folder / "olmo")
    for file in copy.source.glob("token*"):
        shutil.copy(file, copy.folder / "olmo")
    copy.shrink("--keep", "70% of linear", source=copy.folder / "olmo")
    assert len(plan_of(copy.small).decisions) == 2 * 7
    assert json.loads((copy.small / "config.json").read_text())["model_type"] == "olmo"
