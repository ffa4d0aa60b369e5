"""Two processes that train together: each reads its part, and the first one writes the model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from tiny_healing import CUT, asked, note
from tiny_runs import shrink, stored
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
    assert note(together)["used"]
    mine, theirs = stored(alone), stored(together)
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-3, atol=1e-4)
    before = stored(shrink(asked(source, CUT), tmp_path / "cut"))
    moved = max(float((mine[name] - before[name]).abs().max()) for name in mine)
    assert moved > 1e-3


def launch(processes: int, *arguments: object) -> str:
    """Run spectrim in several processes, as launchers do, and return what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "spectrim", *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        for rank in range(processes)
    ]
    said = [one.communicate(timeout=300)[0] for one in running]
    assert [one.returncode for one in running] == [0] * processes, "\n".join(said)
    return "\n".join(said)
