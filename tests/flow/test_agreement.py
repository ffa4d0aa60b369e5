"""Our numbers are those of the tools that people would check them with, to the last digit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from spectrim.metrics import Evaluation, Pair, harness, windows
from spectrim.metrics.asking.harness_tasks import YAML
from spectrim.metrics.perplexity import perplexity
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.text.default_mix import documentation

# Right or wrong, and a probability: all its digits depend on every logit.
TASKS = ("arc_easy", "truthfulqa_mc2")
ITEMS = 2


@pytest.fixture(scope="module")
def command(demo_cache: Path, data: Path, root: Path, tmp_path_factory: Any) -> Any:
    """Return a callable that runs lm-eval's own command on the demo model's folder."""
    folder = sources.resolve("demo", demo_cache).folder

    def run(batch: int) -> dict[str, dict[str, float]]:
        out = tmp_path_factory.mktemp("command")
        words = ["--model", "hf", "--model_args", f"pretrained={folder},dtype=bfloat16"]
        words += ["--tasks", ",".join(TASKS), "--limit", str(ITEMS), "--batch_size", str(batch)]
        words += ["--device", "cpu", "--include_path", str(YAML), "--output_path", str(out)]
        words += ["--metadata", json.dumps({"data": str(data)})]
        paths = [str(root / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        settings = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            # Sums of bfloat16 products depend on how they are shared among threads.
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        done = subprocess.run(
            [sys.executable, "-m", "lm_eval", "run", *words],
            env=settings,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        (file,) = out.glob("**/results_*.json")
        found: dict[str, dict[str, float]] = json.loads(file.read_text())["results"]
        return found

    return run


def test_harness_agrees_with_the_command_of_lm_eval(
    demo_models: Any, data: Path, command: Any
) -> None:
    dense, _, tokenizer = demo_models
    chosen = Evaluation(suite="full", tasks=TASKS, limit=ITEMS, data=data)
    scores = harness.measure(Pair({"dense": dense}, {}, chosen, None, tokenizer))["dense"]
    theirs = command(scores[0].settings["batch"])
    for task in TASKS:
        ours = {one.name: one for one in scores if one.settings["task"] == task}
        names = [name.partition(",")[0] for name in theirs[task] if "stderr" not in name]
        assert set(ours) == {name for name in names if name.startswith("acc")}
        for name, one in ours.items():
            assert one.n == ITEMS
            assert f"{one.value:.10f}" == f"{theirs[task][f'{name},none']:.10f}"


@pytest.mark.parametrize("stride", [None, 24])
def test_perplexity_agrees_with_the_loss_of_transformers(
    demo_models: Any, demo_cache: Path, stride: int | None
) -> None:
    dense, _, tokenizer = demo_models
    stream = tokenizer(documentation()[0], verbose=False, return_tensors="pt").input_ids[0, :256]
    ids = windows(stream, 64, stride or 64)
    with quiet():
        folder = sources.resolve("demo", demo_cache).folder
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    total, count = 0.0, 0
    for number, window in enumerate(ids):
        labels = window.clone()
        if stride is not None and number:
            labels[:-stride] = -100  # scored in the window before
        with torch.inference_mode():
            loss = float(plain(input_ids=window[None], labels=labels[None]).loss)
        scored = int((labels[1:] != -100).sum())  # the first token is no target
        total, count = total + loss * scored, count + scored
    score = perplexity(dense, ids, stride=stride)
    assert score.settings["tokens"] == count
    assert f"{score.value:.4f}" == f"{exp(total / count):.4f}"
