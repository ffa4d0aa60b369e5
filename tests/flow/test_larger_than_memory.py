"""A model that is larger than the memory is shrunk all the same, block by block."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from spectrim.model.weights import quiet
from tiny_folders import WEIGHTS, tiny_folder
from tiny_models import VOCABULARY
from tiny_runs import plan_of, stored, write_text

# Measured with torch 2.13 and transformers 5.23: beyond its imports a run took 94 MiB, most of them
# libraries, and 137 on a processor whose libraries take larger buffers. Loading a checkpoint of 207
# MiB took 239. Here the checkpoint has 184 MiB.
CHECKPOINT = 183 << 20
LIMIT = 160 << 20
BLOCKS = 64
WHOLE = "loading it whole ended with"

# The limit is on address space, mapped files included, beyond what the imports have taken.
LIMITED = """
import resource, sys
from pathlib import Path
import torch
from scipy import linalg
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from spectrim.cli.main import main
from spectrim.verbs import shrink
from spectrim.report import terminal
torch.set_num_threads(1)
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[1]), resource.RLIM_INFINITY))
if sys.argv[2] != "load":
    main(sys.argv[2:])
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[3], dtype=torch.float32)
    print("it fits")
except (MemoryError, RuntimeError, OSError) as error:
    print("loading it whole ended with", error)
"""


def limited(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run in a process that has so much memory beyond its imports, and one arena and thread.

    A matrix is given back to the system as soon as it is free: among blocks as small as these the
    C library would keep it, which real ones are too large for.
    """
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(LIMIT), *map(str, arguments)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": str(256 * 256 * 4),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a Llama of many small blocks in files of 20 MB."""
    folder = tiny_folder(tmp_path / "source")
    (folder / WEIGHTS).unlink()
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    with quiet():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder, max_shard_size="20MB")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited as Linux does it")
def test_a_checkpoint_larger_than_the_memory_is_shrunk(source: Path, tmp_path: Path) -> None:
    held = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    assert held > CHECKPOINT > LIMIT
    loading = limited("load", source)
    assert WHOLE in loading.stdout, loading.stdout + loading.stderr

    text, small = write_text(tmp_path / "text.txt"), tmp_path / "small"
    done = limited(
        "shrink", source, "--keep", "70% of linear", "--calibration", text, "--tokens", "12x32",
        "--no-evaluate", "--cache", tmp_path / "cache", "-o", small,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    plan = plan_of(small)
    kept = sum(one.stored for one in plan.decisions) / sum(one.dense for one in plan.decisions)
    assert 0.68 < kept <= 0.7
    assert len(stored(small)) > 9 * BLOCKS
