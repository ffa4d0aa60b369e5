"""What the statistics and a run cost, as ratios: time, memory, and the plain way beside ours.

    python benchmarks/cost.py [--sequences 12] [-o run/]

Each measurement runs in a process of its own, on the demo model and random token ids (cost does not
depend on the text): one bf16 forward pass; our two sweeps; the plain way, which loads the fp32
model, hooks every linear map at once and takes a double-precision eigendecomposition of both
moments of every site; the fp32 model with its gradients (the yardstick for memory); a shrink from
cached statistics; and the libraries alone. Their memory is the same in every process and for every
model, so it is subtracted from both sides; the ratio of whole processes is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LENGTH = 1024
PLAIN_BLOCKS = 3  # the plain way is timed on so many blocks and scaled up


def main() -> None:
    """Run every measurement in its own process and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("-o", "--output", type=Path, help="folder for cost.json and results.md")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(_measured(asked.only, asked.sequences, asked.cache)))
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = asked.cache or Path(folder)
        found = {}
        for name in ("libraries", "forward", "sweeps", "gradients", "plain", "shrink"):
            command = [sys.executable, __file__, "--only", name, "--cache", str(cache)]
            command += ["--sequences", str(asked.sequences)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(name, found[name], flush=True)
    ratios = _ratios(found)
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")
    if asked.output:
        from measuring import publish  # not above: it would count in every process

        asked.output.mkdir(parents=True, exist_ok=True)
        rows = [{"table": "cost", "what": name, "value": value} for name, value in ratios.items()]
        text = f"{asked.sequences} x {LENGTH} random tokens"
        publish(asked.output, "cost", rows, text=text, measured=found)


def _ratios(found: dict[str, Any]) -> dict[str, float]:
    forward, libraries = found["forward"]["seconds"], found["libraries"]["peak_mib"]
    yardstick = found["gradients"]["peak_mib"]
    ratios = {}
    for key, name in (("sweeps", "sweeps"), ("plain", "plain way")):
        peak, against = found[key]["peak_mib"], "fp32 model with gradients"
        ratios |= {
            f"{name} / one bf16 forward, time": found[key]["seconds"] / forward,
            f"{name} / {against}, memory": (peak - libraries) / (yardstick - libraries),
            f"{name} / {against}, memory, libraries included": peak / yardstick,
        }
    return ratios | {"shrink from cached statistics, seconds": found["shrink"]["seconds"]}


def _measured(name: str, sequences: int, cache: Path) -> dict[str, Any]:
    measure = {
        "libraries": _libraries,
        "forward": _forward,
        "sweeps": _sweeps,
        "gradients": _gradients,
        "plain": _plain,
    }
    extra = (_shrink if name == "shrink" else measure[name])(sequences, cache)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": extra, "peak_mib": peak}


def _ids(sequences: int) -> Any:
    import torch

    return torch.randint(0, 49000, (sequences, LENGTH), generator=torch.Generator().manual_seed(0))


def _model(cache: Path, dtype: str) -> Any:
    import torch

    from spectrim.model import sources

    return sources.model(sources.resolve("demo", cache), dtype=getattr(torch, dtype))


def _libraries(sequences: int, cache: Path) -> float:
    began = time.perf_counter()
    import spectrim.job.job  # noqa: F401

    return time.perf_counter() - began


def _forward(sequences: int, cache: Path) -> float:
    import torch

    model, ids = _model(cache, "bfloat16"), _ids(sequences)
    with torch.inference_mode():
        model(ids[:1])
        began = time.perf_counter()
        for rows in ids.split(4):
            model(rows)
    return time.perf_counter() - began


def _gradients(sequences: int, cache: Path) -> float:
    """Load the model and give every parameter a gradient, no activations."""
    import torch

    began = time.perf_counter()
    for parameter in _model(cache, "float32").parameters():
        parameter.grad = torch.zeros_like(parameter).add_(1)
    return time.perf_counter() - began


def _job(sequences: int, cache: Path) -> Any:
    from spectrim.job.job import Job, load_rest
    from spectrim.model import architectures, sites, sources
    from spectrim.text.tokens import Splits, Tokens

    source = sources.resolve("demo", cache)
    model = sources.skeleton(source)
    weights = sources.Weights(source.folder, model)
    tokens = Tokens.full(_ids(sequences))
    search = Tokens.full(_ids(4))
    job = Job(
        source, model, architectures.architecture_of(model.config), weights, sites.find(model),
        Splits(tokens, search, search), cache, cache / "work", (0.8, "linear"),
        lambda done, total, what: None,
    )  # fmt: skip
    load_rest(model, job.rest(), job.compute_dtype)
    return job


def _sweeps(sequences: int, cache: Path) -> float:
    job = _job(sequences, cache)
    shutil.rmtree(cache / "statistics", ignore_errors=True)
    began = time.perf_counter()
    job.statistics()
    return time.perf_counter() - began


def _shrink(sequences: int, cache: Path) -> float:
    """Decompose, allocate, cut, refine and write, from cached statistics."""
    from spectrim.job.output import write_model
    from spectrim.recipe.options import Factorize
    from spectrim.stages.factorize import factorize

    shutil.rmtree(cache / "work", ignore_errors=True)
    began = time.perf_counter()
    job = _job(sequences, cache)
    factorize(job, Factorize())
    (cache / "small").mkdir(exist_ok=True)
    write_model(job, cache / "small")
    return time.perf_counter() - began


def _plain(sequences: int, cache: Path) -> float:
    """Hook every map of the fp32 model, then two fp64 eigendecompositions a site."""
    import torch

    model, ids = _model(cache, "float32"), _ids(sequences)
    blocks = model.model.layers
    maps = [m for block in blocks for m in block.modules() if isinstance(m, torch.nn.Linear)]
    moments: dict[Any, Any] = {}

    def add(key: Any, rows: Any) -> None:
        rows = rows.detach().reshape(-1, rows.shape[-1])
        moments[key] = moments.get(key, 0) + rows.T @ rows

    for linear in maps:
        linear.register_forward_hook(lambda m, args, out: add((m, "in"), args[0]))
        linear.register_full_backward_hook(lambda m, gin, gout: add((m, "out"), gout[0]))
    began = time.perf_counter()
    for row in ids:
        model(row[None], labels=row[None]).loss.backward()
        model.zero_grad()
    collected = time.perf_counter() - began
    began = time.perf_counter()
    per_block = len(maps) // len(blocks)
    for linear in maps[: PLAIN_BLOCKS * per_block]:
        torch.linalg.eigh(moments[linear, "in"].double())
        torch.linalg.eigh(moments[linear, "out"].double())
    return collected + (time.perf_counter() - began) * len(blocks) / PLAIN_BLOCKS


if __name__ == "__main__":
    main()
