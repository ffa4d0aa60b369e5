"""Other ways to few bits: matrices as HQQ, AutoRound, llama.cpp, GPTQ and rounding make them.

Each way gets a model in work (its matrices, the calibration text, the moments of all inputs) and
returns the values that its codes stand for with the bytes that it stores: codes, scales and zero
points. HQQ and AutoRound are the packages `hqq` and `auto-round` (pip install 'spectrim[peers]').
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import GGMLQuantizationType as Kind
from jaxtyping import Float
from llama_cpp_mixes import type_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from spectrim.cutting.table_losses import Tables
from spectrim.errors import SpectrimError
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job
from spectrim.model import sources
from spectrim.rounding.embedding_and_head import GRIDS, TableRounding
from spectrim.rounding.few_bits import Rounding
from spectrim.rounding.ggml import dequantize, quantize, row_bytes
from spectrim.walk.statistics import block_statistics

GROUP = 64  # weights with a scale and a zero point, where the way has a choice
AROUND = {"iters": 50, "nsamples": 64, "seqlen": 256, "batch_size": 4}
SUPER = 256  # weights of a block of llama.cpp's smaller types

Matrix = Float[Tensor, "out in"]


class Stored(NamedTuple):
    """A matrix in few bits: the values that its codes stand for, and the bytes that it takes."""

    values: Matrix
    bytes: float


class Work(NamedTuple):
    """What a way may look at.

    maps: the matrices of the blocks by parameter; ends: those of embedding and head, one if tied.
    kept: folder for what took long.
    """

    job: Job
    maps: dict[str, Matrix]
    ends: dict[str, Matrix]
    kept: Path

    def moments(self) -> Iterable[tuple[str, Float[Tensor, "in in"]]]:
        """Yield the second moment of the inputs of every map; some ways need none."""
        for place in self.job.each_block():
            for name, known in block_statistics(self.job.statistics(), place).items():
                assert known.input_moment is not None
                yield f"{name}.weight", known.input_moment


Made = dict[str, Stored]
Way = Callable[[Work, Any], Made]


def in_ours(work: Work, bits: int, *, gptq: bool) -> Made:
    """Return maps rounded by our code, to the nearest or by GPTQ, groups of 64."""
    grid = Grid(bits, GROUP, False)
    rounding, found = Rounding(grid, torch.bfloat16, gptq=gptq), {}
    for name, moment in work.moments():
        matrix = work.maps[name]
        made = rounding(matrix.float(), moment if gptq else torch.eye(len(moment)))
        found[name] = Stored(made.dequantize(GROUP), _ours(matrix, grid))
    return found


def ends_in(work: Work, bits: int) -> Made:
    """Return embedding and head to the nearest, in our grid of so many bits."""
    rounding, found = TableRounding(GRIDS.get(bits, Grid(bits, GROUP, False))), {}
    for name, table in work.ends.items():
        made = rounding(table.float(), torch.bfloat16)
        values = torch.cat([one.dequantize(rounding.grid.group) for one in made])
        found[name] = Stored(values, _ours(table, rounding.grid))
    return found


def hqq(work: Work, bits: int) -> Made:
    """Return maps by HQQ (Badri, Shaji 2023), which looks at no text; scale and zero float16."""
    from hqq.core.quantize import Quantizer

    held = 3.2 if bits == 3 else bits  # its packing of three bits: ten codes in 32
    found = {}
    for name, matrix in work.maps.items():
        codes, about = Quantizer.quantize(
            matrix.float(), nbits=bits, group_size=GROUP, axis=1, device="cpu",
            compute_dtype=torch.float32,
        )  # fmt: skip
        values = Quantizer.dequantize(codes, about).view(matrix.shape)
        found[name] = Stored(values, matrix.numel() * (held / 8 + 4 / GROUP))
    return found


def autoround(work: Work, bits: int) -> Made:
    """Return maps by AutoRound (2309.05516); scale float16, zero point in ``bits``."""
    file = work.kept / f"autoround-{bits}.safetensors"
    if not file.is_file():
        save_file(_autoround(work.job, bits), file)
    values = load_file(file)
    each = bits / 8 + (2 + bits / 8) / GROUP
    return {name: Stored(values[name], one.numel() * each) for name, one in work.maps.items()}


def _autoround(job: Job, bits: int) -> dict[str, Tensor]:
    from auto_round import AutoRound

    model = sources.model(job.source, dtype=torch.bfloat16)
    length, batch = AROUND["seqlen"], AROUND["batch_size"]
    ids = job.splits.calibration.ids
    pieces = ids[:, : ids.shape[1] // length * length].reshape(-1, length)
    spread = torch.linspace(0, len(pieces) - 1, AROUND["nsamples"]).long()
    begun = time.process_time()
    done, _ = AutoRound(
        model, sources.tokenizer(job.source), bits=bits, group_size=GROUP, sym=False,
        dataset=list(pieces[spread].split(batch)), device_map="cpu", enable_torch_compile=False,
        low_cpu_mem_usage=False, **AROUND,
    ).quantize()  # fmt: skip
    print(f"AutoRound in {bits} bits: {time.process_time() - begun:.0f} s of processor", flush=True)
    names = {f"{site.name}.weight" for site in job.sites if site.block >= 0}
    state = done.state_dict()
    if lost := names - set(state):
        raise SpectrimError(f"AutoRound left out {sorted(lost)[0]}; take the version of the extra")
    return {name: state[name].contiguous() for name in names}


def llama_cpp(work: Work, mix: str) -> Made:
    """Return maps, embedding and head in the types of one of llama.cpp's own mixes.

    mix: with "*" behind it, types as rows of a multiple of 256 get them, filled up with zeros which
        are not counted.
    """
    tables = Tables(work.job)
    weigh = {name: moment.diagonal() for name, moment in work.moments()}
    weigh[tables.names[-1]] = tables.moment().diagonal()
    config, every, found = work.job.model.config, {**work.maps, **work.ends}, {}
    queries = config.num_attention_heads // config.num_key_value_heads
    for site in work.job.sites:
        name = f"{site.name}.weight"
        matrix, role = every[name].float(), site.role
        role = "head" if role == "embed" and tables.tied else role
        rows, columns = matrix.shape
        wide = -(-columns // SUPER) * SUPER if mix.endswith("*") else columns
        kind = type_of(mix.rstrip("*"), role, site.block, config.num_hidden_layers, wide, queries)
        found[name] = _in_blocks(matrix, kind, weigh.get(name), wide)
    return found


def _in_blocks(matrix: Matrix, kind: Kind, weigh: Tensor | None, wide: int) -> Stored:
    rows, columns = matrix.shape
    more = wide - columns
    if more:
        matrix = torch.nn.functional.pad(matrix, (0, more))
        weigh = None if weigh is None else torch.nn.functional.pad(weigh, (0, more))
    values = dequantize(quantize(matrix, kind, weigh), kind)[:, :columns]
    return Stored(values, rows * row_bytes(kind, wide) * columns / wide)


def _ours(matrix: Matrix, grid: Grid) -> float:
    """Return the bytes of a matrix in our grid: a row's scale; a group's scale and offset."""
    rows, columns = matrix.shape
    groups = 0 if grid.group == 0 else -(-columns // grid.group)
    return rows * (columns * grid.bits / 8 + 2 + groups * (1 if grid.symmetric else 2))


WAYS: dict[str, Way] = {
    "nearest": lambda work, bits: in_ours(work, bits, gptq=False),
    "GPTQ": lambda work, bits: in_ours(work, bits, gptq=True),
    "HQQ": hqq,
    "llama.cpp": llama_cpp,
    "AutoRound": autoround,
}
