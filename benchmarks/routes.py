"""Every way to run a made model, beside llama.cpp's Q4_0 of the dense one.

    python benchmarks/routes.py rotated/ small/ -o run/ --prepare
    python benchmarks/routes.py rotated/ small/ -o run/ [--large] [--native package/bins/linux-x64/]

The made model runs by from_pretrained, as an ONNX and as a GGUF export; what llama.cpp itself makes
of the dense model stands beside it. Each has a process of its own, and they take turns. With
``--large`` both are Llamas of 1.1 B random weights, the smaller one made as small/ is. ``--native``
names a llama.cpp that knows this processor, see benchmarks/native_llama_cpp.py.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from measuring import Row, arguments, publish
from one_line_errors import told
from routes_models import write_large, write_q4_0

from spectrim.verbs import runtimes
from spectrim.verbs.export import export
from spectrim.verbs.runnable import runnable
from spectrim.verbs.runtimes import Runtime
from spectrim.verbs.traffic import weights

PROMPT, NEW_TOKENS, ROUNDS, THREADS = 256, 24, 5, 2
NATIVE = Path(__file__).with_name("native_llama_cpp.py")


def main() -> None:
    """Write what is missing, and unless asked for no more, time all of it."""
    parser = arguments(__doc__)
    parser.add_argument("dense", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--native", type=Path)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    dense, small = asked.dense, asked.small
    if asked.large:
        dense, small = asked.output / "dense", asked.output / "small"
        if not small.exists():
            write_large(asked.small, dense, small)
    models = prepared(dense, small, asked.output)
    if asked.prepare:
        return
    if asked.native:
        models["llama.cpp for this processor, Q4_0 of dense"] = models["llama.cpp, Q4_0 of dense"]
    rows = timed(models, asked.native)
    name = "routes_large" if asked.large else "routes"
    print(publish(
        asked.output, name, rows, text=f"{PROMPT} tokens in, {NEW_TOKENS} out, one sequence",
        model="a Llama of 1.1 B random weights" if asked.large else str(asked.small),
    ))  # fmt: skip


def prepared(dense: Path, small: Path, output: Path) -> dict[str, Path]:
    """Return every model by what it is called, exported unless it is there."""
    q4_0, ours, graph = output / "dense-q4_0.gguf", output / "small.gguf", output / "small-onnx"
    if not q4_0.exists():
        write_q4_0(dense, q4_0)
    for form, path in (("gguf", ours), ("onnx", graph)):
        if not path.exists():
            export(str(small), form, path)
    return {
        "transformers, dense bf16": dense, "transformers, ours": small,
        "ONNX Runtime, ours": graph, "llama.cpp, ours": ours, "llama.cpp, Q4_0 of dense": q4_0,
    }  # fmt: skip


def timed(models: dict[str, Path], native: Path | None) -> list[Row]:
    """Return a row for each model: tokens a second, ratios to the first and to the last."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    with ExitStack() as stack:
        running = {}
        for name, path in models.items():
            own = native if "for this processor" in name else None
            running[name] = stack.enter_context(_runtime(path, own))
        for done in range(-1, ROUNDS):
            for name in list(models)[:: 1 if done % 2 else -1]:
                seconds = running[name].round()
                taken[name] += [seconds] if done >= 0 else []
    names = list(models)
    rows = []
    for name, path in models.items():
        row: dict[str, Any] = {"table": "routes", "model": name}
        row["megabytes"] = weights(runnable(str(path))).disk / 1e6
        for at, (part, count) in enumerate((("prefill", PROMPT), ("decode", NEW_TOKENS))):
            row[part] = median(count / one[at] for one in taken[name])
            row[f"{part}_of_dense"] = _ratio(taken[name], taken[names[0]], at)
        row["decode_of_q4_0"] = _ratio(taken[name], taken[names[-1]], 1)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def _ratio(
    own: list[tuple[float, float]], other: list[tuple[float, float]], at: int
) -> list[float]:
    """Return how many times as fast one is as another, round by round: the median and both ends."""
    ratios = sorted(theirs[at] / mine[at] for mine, theirs in zip(own, other, strict=True))
    return [median(ratios), ratios[0], ratios[-1]]


def _runtime(path: Path, native: Path | None) -> Runtime:
    """Return a process that runs a model, by another llama.cpp where one is named."""
    model = runnable(str(path))
    if native is None:
        return Runtime(model, PROMPT, NEW_TOKENS, THREADS)
    start = runtimes.subprocess.Popen

    def other(command: list[str], **settings: Any) -> Any:
        return start([sys.executable, str(NATIVE), str(native)], **settings)

    with patch.object(runtimes.subprocess, "Popen", other):
        return Runtime(model, PROMPT, NEW_TOKENS, THREADS)


if __name__ == "__main__":
    told(main)
