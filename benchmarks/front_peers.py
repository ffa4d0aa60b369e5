"""What others make of a model at 4, 3 and 2 bits: the same texts, their bytes, one table.

    python benchmarks/front_peers.py -o run/ --model rescaled/ [--rows GPTQ,HQQ] [--ends 8]

The model is one off its grid, turned (rotated.py) or not (rescaled.py), a Gemma too; by default the
demo, not turned. Each way of peers.py makes all matrices of the blocks; their values are written
back as they are and read the texts that benchmarks/front.py reads. All ways calibrate on the same
text, those that need one. Embedding and head are alike in all rows but llama.cpp's, whose mixes
have their own types for them. Rows that are known are kept, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from calibrated import calibrated
from front_bench import losses_on
from front_table import unbeaten
from measuring import (
    arguments,
    commits_of,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    texts_of,
)
from one_line_errors import told
from peers import WAYS, Made, Work, ends_in

from spectrim.model import sources

MIXES = ("Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_XS")


class Peer(NamedTuple):
    """One row: a way of peers.py, and its bits or llama.cpp's mix."""

    way: str
    how: Any

    @property
    def label(self) -> str:
        """Return what the row is called."""
        return f"{self.way} {'int' if isinstance(self.how, int) else ''}{self.how}"


PEERS = (
    *(Peer(way, bits) for bits in (4, 3, 2) for way in ("GPTQ", "HQQ", "nearest")),
    *(Peer("llama.cpp", f"{mix}{wide}") for mix in MIXES for wide in ("", "*")),
    Peer("llama.cpp", "IQ4_XS"),
    *(Peer("AutoRound", bits) for bits in (2, 3, 4)),
)


def main() -> None:
    """Make and measure all rows, resuming, and write front_peers.json and results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default the demo rescaled")
    parser.add_argument("--rows", default="", help="parts of labels; all")
    parser.add_argument("--ends", default="8", help="bits of embedding and head: 8, 4, 3, 2")
    parser.add_argument("--tokens", default="48x1024", help="of the calibration text")
    parser.add_argument("--windows", type=int, default=10, help="of a text at most, 2 or more")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    asked = read_arguments(parser)
    bench = Bench(asked)
    bench.keep("dense", "16", lambda: {})
    parts = asked.rows.split(",")
    for peer in (one for one in PEERS if any(part in one.label for part in parts)):
        for ends in ["own"] if peer.way == "llama.cpp" else asked.ends.split(","):
            bench.keep(peer.label, ends, lambda p=peer, e=ends: bench.made(p, e))  # type: ignore[misc]
    print(bench.results())


class Bench:
    """One model, the texts, and the rows that are known."""

    def __init__(self, asked: argparse.Namespace) -> None:
        job, second, self.name = calibrated(asked)
        self.output, source = asked.output, job.source
        job.progress = lambda done, total, what: None
        self.texts = texts_of(source, second, asked.data, asked.windows, asked.length)
        self.model = sources.model(source)
        self.dense = {name: one.clone() for name, one in self.model.state_dict().items()}
        held = {f"{site.name}.weight": site.block for site in job.sites}
        maps = {name: self.dense[name] for name, block in held.items() if block >= 0}
        ends = {name: self.dense[name] for name, block in held.items() if block < 0}
        self.work = Work(job, maps, ends, asked.output)

    def made(self, peer: Peer, ends: str) -> Made:
        """Return all matrices of a row."""
        made = WAYS[peer.way](self.work, peer.how)
        return made if ends == "own" else {**made, **ends_in(self.work, int(ends))}

    def keep(self, label: str, ends: str, make: Any) -> None:
        """Measure a row unless it is known."""

        def measure() -> dict[str, Any]:
            made: Made = make()
            self.model.load_state_dict(self.dense)
            state = self.model.state_dict()
            with torch.no_grad():
                for name, stored in made.items():
                    state[name].copy_(stored.values)
            losses = {name: losses_on(self.model, text) for name, text in self.texts.items()}
            return {**losses, **self.bytes(made), "ends": ends}

        keep_row(self.output, self.name, f"{label}, ends {ends}", 1.0, measure)

    def bytes(self, made: Made) -> dict[str, int]:
        """Return the bytes of the maps and of all tensors, what is not made being dense."""
        names: dict[int, str] = {}  # of what is tied the first
        for name, one in self.model.state_dict().items():
            names.setdefault(one.data_ptr(), name)
        each: dict[str, float] = {name: self.dense[name].nbytes for name in names.values()}
        each |= {name: one.bytes for name, one in made.items()}
        linear = sum(each[name] for name in self.work.maps)
        return {"linear_bytes": round(linear), "bytes": round(sum(each.values()))}

    def results(self) -> str:
        """Write the run and its table, and return this."""
        windows = ", ".join(f"{len(one)} of {name}" for name, one in self.texts.items())
        length = next(iter(self.texts.values())).ids.shape[1]
        return results(self.output, self.name, list(self.texts), f"{length} tokens: {windows}")


def results(output: Path, model: str, texts: list[str], windows: str) -> str:
    """Write the run of a model's rows and its table, by size, and return this."""
    rows = [row for row in known_rows(output).values() if row["calibration"] == model]
    dense = next(row for row in rows if row["label"].startswith("dense"))
    others = sorted((one for one in rows if one is not dense), key=lambda one: -one["linear_bytes"])
    best = unbeaten(others, texts)
    lines = []
    for row in others:
        excess = {text: excess_of(row[text], dense[text]) for text in texts}
        lines.append({
            "table": "front_peers", "model": model, "label": row["label"].split(",")[0],
            "ends": row["ends"], "linear": row["linear_bytes"] / dense["linear_bytes"],
            "file": row["bytes"] / dense["bytes"], "excess": excess,
            "mean": sum(one[0] for one in excess.values()) / len(excess),
            "front": any(row is one for one in best), "commit": row["commit"],
        })  # fmt: skip
    return publish(
        output, "front_peers", lines, model=model, commit=commits_of(rows), windows=windows,
        text="calibrated on the mixed text of benchmarks/mixed_text.py",
    )  # fmt: skip


if __name__ == "__main__":
    told(main)
