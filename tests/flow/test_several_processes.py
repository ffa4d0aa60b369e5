"""Two processes that train together: each reads its part, and the first one writes the model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch

import tiny_processes
from tiny_healing import CUT, asked, note
from tiny_runs import equal, shrink, stored
from tiny_trained import trained_folder, write_learnable

STEPS = {"steps": 6, "every": 3, "learning_rate": 0.02, "warmup": 1, "batch": 2}


def test_two_processes_take_the_steps_that_one_takes_with_twice_the_text(tmp_path: Path) -> None:
    write_learnable(tmp_path / "text.txt", words=80 * 32)
    source = trained_folder(tmp_path / "source")
    alone = shrink(asked(source, CUT, {"distil": {**STEPS, "accumulation": 2}}), tmp_path / "alone")
    file = tmp_path / "recipe.yaml"
    file.write_text(asked(source, CUT, {"distil": STEPS}).to_yaml())
    together = tmp_path / "together"
    said = launch(2, "shrink", "--recipe", file, "-o", together, "--cache", tmp_path / "others",
                  "--no-evaluate")  # fmt: skip
    assert said.count(f"wrote {together}") == 1
    assert note(together)["used"] and note(together)["processes"] == 2
    mine, theirs = stored(alone), stored(together)
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4)
    before = stored(shrink(asked(source, CUT), tmp_path / "cut"))
    moved = max(float((mine[name] - before[name]).abs().max()) for name in mine)
    assert moved > 1e-3


def test_killed_and_started_again_they_end_in_the_same_bits(tmp_path: Path) -> None:
    write_learnable(tmp_path / "text.txt", words=80 * 32)
    source = trained_folder(tmp_path / "source")
    file = tmp_path / "recipe.yaml"
    file.write_text(asked(source, CUT, {"distil": {**STEPS, "steps": 40, "every": 2}}).to_yaml())
    said = ("shrink", "--recipe", file, "--no-evaluate", "--cache", tmp_path / "cache", "-o")
    assert ended(start(2, *said, tmp_path / "whole", folder=tmp_path)) == [0, 0]
    running = start(2, *said, tmp_path / "killed", folder=tmp_path)
    training = "work/*/*/training/checkpoint.safetensors"
    while len(list((tmp_path / "cache").glob(training))) < 2:
        assert all(one.is_alive() for one in running)
        time.sleep(0.01)
    for one in running:
        one.kill()
        one.join()
    assert ended(start(2, *said, tmp_path / "killed", folder=tmp_path)) == [0, 0]
    assert equal(stored(tmp_path / "whole"), stored(tmp_path / "killed"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--size", "50%"], "--size chooses in one process; run it alone, then give its"),
        (["--recipe", "low.yaml"], "low_memory updates where the gradient is made, so it runs in"),
    ],
    ids=["size", "low_memory"],
)
def test_what_one_process_does_is_refused_to_two(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    write_learnable(tmp_path / "text.txt", words=80 * 32)
    source = trained_folder(tmp_path / "source")
    recipe = asked(source, CUT, {"low_memory": {"steps": 2}})
    (tmp_path / "low.yaml").write_text(recipe.to_yaml())
    text = ["--calibration", str(tmp_path / "text.txt"), "--tokens", "48x32"]
    running = start(2, "shrink", str(source), *arguments, *text, "--cache", tmp_path / "cache",
                    "-o", tmp_path / "small", folder=tmp_path)  # fmt: skip
    codes = ended(running)
    heard = [(tmp_path / f"log{rank}").read_text() for rank in range(2)]
    assert codes == [2, 2], heard
    assert all(told in text for text in heard)
    assert not (tmp_path / "small").exists()


def launch(processes: int, *arguments: object) -> str:
    """Run spectrim in several processes and return what they say."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "spectrim", *map(str, arguments)],
            env={**os.environ, **one},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for one in ranks(processes)
    ]
    said = [one.communicate(timeout=300)[0] for one in running]
    assert [one.returncode for one in running] == [0] * processes, "\n".join(said)
    return "\n".join(said)


def start(processes: int, *arguments: object, folder: Path) -> list[ForkServerProcess]:
    """Start spectrim as `launch` does, in a folder, forked; what process 0 says goes to log0."""
    return [
        tiny_processes.start([*map(str, arguments)], folder / f"log{rank}", folder=folder, **one)
        for rank, one in enumerate(ranks(processes))
    ]


def ended(running: list[ForkServerProcess]) -> list[int | None]:
    """Wait for processes and return their exit codes."""
    for one in running:
        one.join(300)
    return [one.exitcode for one in running]


def ranks(processes: int) -> list[dict[str, str]]:
    """Return what torchrun says to each of several processes on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
