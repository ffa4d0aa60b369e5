"""How fast models run, each in the runtime for its form, one process each, taking turns."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from spectrim.errors import SpectrimError
from spectrim.outputs.folder import output_file
from spectrim.outputs.manifest import are_scores
from spectrim.outputs.refusals import refuse_file
from spectrim.processes import machine
from spectrim.progress import Progress
from spectrim.verbs.runnable import Runnable, checked_threads, runnable
from spectrim.verbs.runtimes import Runtime
from spectrim.verbs.traffic import Weights, bandwidth, weights

_PACKAGES = ("spectrim", "torch", "transformers", "xllamacpp", "llama-cpp-py-sync", "onnxruntime")


@dataclass(frozen=True)
class Work:
    """What each model does in a round."""

    prompt: int = 256
    """Tokens that are read at once."""
    new: int = 32
    """Tokens that follow one by one."""
    rounds: int = 5
    """Timed rounds, after one that does not count."""


def bench(
    names: Sequence[str],
    against: str | None,
    work: Work,
    *,
    threads: int | None = None,
    cache: Path | None = None,
    json_path: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return speed, memory and bytes of models, measured in turns.

    Every model stays loaded in a process of its own; in each round each is timed once, the order
    turned round every time, so that a machine that slows down hits all alike.

    Args:
        names: model folders, GGUF files, ONNX folders, hub names, or "demo".
        against: the model that the others are compared with; None for no comparison.
        work: what each does in a round.
        threads: of every engine; None for all cores.
        cache: as in ``shrink``.
        json_path: also write the numbers there.
        progress: called as ``progress(done, total, what)``.

    Raises:
        SpectrimError: a number below 1, a model that nothing runs, a runtime that fails, or a file
            at ``json_path`` that is not ours.
    """
    if min(work.prompt, work.new, work.rounds) < 1:
        raise SpectrimError("--prompt, --new and --rounds are to be 1 or more")
    if json_path is not None:
        refuse_file(json_path, are_scores)
    threads = checked_threads(threads)
    progress = progress or (lambda done, total, what: None)
    wanted = dict.fromkeys([*([against] if against else []), *names])
    models = [runnable(name, cache) for name in wanted]
    sizes = [weights(model) for model in models]  # before anything is loaded, as it looks at files
    speed = bandwidth(threads)
    timed = _timed(models, work, threads, progress)
    rows = [
        _row(model, size, one, work, speed)
        for model, size, one in zip(models, sizes, timed, strict=True)
    ]
    if against:
        for row in rows:
            row["decode_ratio"] = row["decode"] / rows[0]["decode"]
            row["prefill_ratio"] = row["prefill"] / rows[0]["prefill"]
    reference = models[0].name if against else None
    found = {"settings": _settings(work, threads, speed, reference), "rows": rows}
    if json_path is not None:
        with output_file(json_path) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


@dataclass(frozen=True)
class _Times:
    """Seconds of every round, and the peak of memory in bytes."""

    prefill: list[float]
    decode: list[float]
    peak: int


def _timed(
    models: Sequence[Runnable], work: Work, threads: int, progress: Progress
) -> list[_Times]:
    taken: list[list[tuple[float, float]]] = [[] for _ in models]
    with ExitStack() as stack:
        runtimes = []
        for done, model in enumerate(models):
            progress(done, len(models), "loading")
            runtimes.append(stack.enter_context(Runtime(model, work.prompt, work.new, threads)))
        progress(len(models), len(models), "loading")
        for done in range(-1, work.rounds):
            order = range(len(models)) if done % 2 else range(len(models) - 1, -1, -1)
            for index in order:
                one = runtimes[index].round()
                taken[index] += [one] if done >= 0 else []
            progress(done + 1, work.rounds, "timing")
        peaks = [runtime.peak() for runtime in runtimes]
    return [
        _Times([one for one, _ in rounds], [other for _, other in rounds], peak)
        for rounds, peak in zip(taken, peaks, strict=True)
    ]


def _row(model: Runnable, size: Weights, times: _Times, work: Work, speed: float) -> dict[str, Any]:
    """Return what is told of one model: tokens/s, seconds and bytes, medians of the rounds."""
    decode = [work.new / seconds for seconds in times.decode]
    prefill = [work.prompt / seconds for seconds in times.prefill]
    return {
        "model": model.name,
        "engine": model.engine,
        "decode": median(decode),
        "decode_rounds": decode,
        "prefill": median(prefill),
        "prefill_rounds": prefill,
        "first_token": median(times.prefill),
        "peak_memory": times.peak,
        "disk": size.disk,
        "bytes_per_token": size.token,
        "bandwidth_used": size.token * median(decode) / speed,
    }


def _settings(work: Work, threads: int, speed: float, against: str | None) -> dict[str, Any]:
    return asdict(work) | {
        "threads": threads,
        "against": against,
        "bandwidth": speed,
        "machine": machine(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))}
        | {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown" if name == "spectrim" else None
