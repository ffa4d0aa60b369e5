"""llama.cpp's types, chosen by one allocation, against its own mixes at the same bytes.

    python benchmarks/llama_cpp_types.py -o run/ [--model FOLDER] [--mixes Q3_K_M,IQ4_XS,Q4_K_M]
    python benchmarks/llama_cpp_types.py -o run/ --model wide/ --predict --tokens 16x1024

Without --model: the demo off its grid, not turned (rescaled.py). Both sides have ggml's code and
the same second moments: llama.cpp's mixes their diagonal, as importance matrix, ours all of them.
A row of ours has the bytes of all matrices, embedding and head among them, that the mix has.
Losses are of the unpacked weights in transformers, which llama.cpp's own agree with; beside them
stands what is predicted, by the offers that the choice is made from, llama.cpp's with ggml's codes.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from calibrated import calibrated
from front_bench import losses_on
from llama_cpp_mixes import MIXES, type_of
from measuring import (
    arguments,
    excess_of,
    keep_row,
    known_rows,
    publish,
    read_arguments,
    texts_of,
)
from one_line_errors import told
from transformers import PreTrainedModel

from spectrim.cutting.table_losses import Tables, table_offers
from spectrim.cutting.type_choice import DENSE, choose, predicted
from spectrim.cutting.type_losses import Offer, map_offers, measured
from spectrim.cutting.types_made import Chosen, carried_out
from spectrim.job.job import Job
from spectrim.model import sources
from spectrim.model.sites import Site
from spectrim.report.progress import shown
from spectrim.rounding.ggml import dequantize, quantize, row_bytes
from spectrim.text.tokens import Tokens
from spectrim.walk.statistics import block_statistics

HOW = {"llama.cpp": "ggml's own codes", "ours": "chosen types, ggml's blocks, our codes",
       "allocation alone": "chosen types, ggml's own codes",
       "codes alone": "llama.cpp's types, our codes"}  # fmt: skip


MIXED = 5.2  # bits: offers for this mean hold every type that the mixes have


def main() -> None:
    """Make and measure all rows, resuming, and write llama_cpp_types.json and results.md."""
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="the dense model; by default the demo rescaled")
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--ways", default=",".join(HOW))
    parser.add_argument("--tokens", default="48x1024", help="of the calibration text")
    parser.add_argument("--predict", action="store_true", help="measure on no text")
    parser.add_argument("--windows", type=int, default=10, help="of a text at most, 2 or more")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    asked = read_arguments(parser)
    bench = Bench(asked)
    bench.keep("dense", "", {}, lambda: 0.0, ours=False)
    for mix in asked.mixes.split(","):
        for way in asked.ways.split(","):
            bench.row(mix, way)
    print(bench.results())


class Bench:
    """One model, the texts, and the rows that are known."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.job, second, self.name = calibrated(asked)
        self.output, self.source = asked.output, self.job.source
        with shown() as progress:
            self.job.progress = progress
            self.job.statistics()
        self.job.progress = lambda done, total, what: None
        self.texts: dict[str, Tokens] = {}
        if not asked.predict:
            self.texts = texts_of(self.source, second, asked.data, asked.windows, asked.length)
        self.model: PreTrainedModel = sources.model(self.source)
        self.dense = {name: one.clone() for name, one in self.model.state_dict().items()}
        self.diagonals = _diagonals(self.job)
        self.tables = Tables(self.job)

    def row(self, mix: str, way: str) -> None:
        """Make and measure a row unless an earlier run already has."""
        named = self.mix(mix)
        room = sum(self.bytes(name, kind) for name, kind in named.items())
        mean = 8 * room / sum(site.out_features * site.in_features for site in self.job.sites)
        if way in ("ours", "allocation alone"):
            chosen = choose(self.offers(mean), room)
        else:
            chosen, mean = named, min(mean, MIXED)
        ours = way in ("ours", "codes alone")

        def foretold() -> float:
            return predicted(self.offers(mean), chosen) if ours else self.plain(chosen)

        self.keep(way, mix, chosen, foretold, ours=ours)

    def keep(
        self, way: str, mix: str, chosen: Chosen, foretold: Callable[[], float], *, ours: bool
    ) -> None:
        """Measure a row unless it is known."""

        def make() -> dict[str, Any]:
            return {
                **self._losses(chosen, ours=ours),
                "bytes": sum(self.bytes(name, kind) for name, kind in chosen.items()),
                "predicted": foretold(),
                "chosen": {name: kind.name for name, kind in chosen.items()},
            }

        keep_row(self.output, self.name, f"{way} {mix}".strip(), 1.0, make)

    def _losses(self, chosen: Chosen, *, ours: bool) -> dict[str, Any]:
        """Return what the model loses on each text with its matrices in some types."""
        if not self.texts:
            return {}
        self.model.load_state_dict(self.dense)
        values = self._ours(chosen) if ours else self._theirs(chosen)
        state = self.model.state_dict()
        for name, tensor in values.items():
            state[name].copy_(tensor)
        return {name: losses_on(self.model, windows) for name, windows in self.texts.items()}

    def mix(self, mix: str) -> Chosen:
        """Return the type that llama.cpp gives each matrix."""
        config = self.job.model.config
        queries = config.num_attention_heads // config.num_key_value_heads
        blocks = config.num_hidden_layers

        def of(site: Site) -> Any:
            role = "head" if site.role == "embed" and self.tables.tied else site.role
            return type_of(mix, role, site.block, blocks, site.in_features, queries)

        return {f"{site.name}.weight": of(site) for site in self.job.sites}

    def offers(self, mean: float) -> list[Offer]:
        """Return what every matrix may be stored as."""
        return [*map_offers(self.job, mean), *table_offers(self.job, mean)]

    def plain(self, chosen: Chosen) -> float:
        """Return the predicted loss of a choice of types with ggml's own codes."""
        known = measured(self.job, MIXED)
        ends = {one.name: one for one in table_offers(self.job, MIXED)}
        total = 0.0
        for name, kind in chosen.items():
            if name in ends:
                loss = predicted([ends[name]], chosen)
                total += loss * self._more(name, kind) if loss else loss
            elif kind != DENSE:
                total += known[name.removesuffix(".weight")][kind.name]
        return total

    def _more(self, name: str, kind: Any) -> float:
        """Return how much more a table loses with ggml's own codes than with ours."""
        rows = self.tables.sample(name)
        packed = [self.tables.packed(name, kind, plain=one, some=rows) for one in (True, False)]
        plain, fed = (self.tables.error(name, one, kind, rows) for one in packed)
        return plain / fed

    def bytes(self, name: str, kind: Any) -> int:
        """Return how many bytes a matrix takes in a type."""
        rows, columns = self.dense[name].shape
        return int(rows * row_bytes(kind, columns))

    def _ours(self, chosen: Chosen) -> dict[str, torch.Tensor]:
        made = carried_out(self.job, chosen, self.output / "made")
        print(f"divergence {made.divergence:.4f}, loss {made.loss:.4f} of {made.dense_loss:.4f}")
        return {name: dequantize(one, chosen[name]) for name, one in made.packed.items()}

    def _theirs(self, chosen: Chosen) -> dict[str, torch.Tensor]:
        found = {}
        for name, kind in chosen.items():
            packed = quantize(self.dense[name].float(), kind, self.diagonals.get(name))
            found[name] = dequantize(packed, kind)
        return found

    def results(self) -> str:
        """Write the run and its tables, and return these."""
        known = known_rows(self.output)
        rows = {key.split(" | ")[1]: row for key, row in known.items() if key.startswith(self.name)}
        dense = rows.pop("dense")
        lines = []
        for label, row in rows.items():
            way, _, mix = label.rpartition(" ")
            excess = {text: excess_of(row[text], dense[text]) for text in self.texts}
            lines.append({
                "table": "llama_cpp_types", "model": self.name, "mix": mix, "way": way,
                "bytes": row["bytes"], "excess": excess, "mean": _mean(excess),
                "predicted": row["predicted"], "kinds": Counter(row["chosen"].values()),
                "commit": row["commit"],
            })  # fmt: skip
        theirs = {line["mix"]: line for line in lines if line["way"] == "llama.cpp"}
        for line in lines:
            base = theirs[line["mix"]]
            line["predicted_part"] = line["predicted"] / base["predicted"]
            if self.texts:
                line["part"] = line["mean"] / base["mean"]
        return publish(
            self.output, "llama_cpp_types", lines, model=self.name,
            text="calibrated on the mixed text of benchmarks/mixed_text.py",
            windows=", ".join(
                f"{len(windows)} of {windows.ids.shape[1]} tokens of {name}"
                for name, windows in self.texts.items()
            ),
        )  # fmt: skip


def _mean(excess: dict[str, list[float]]) -> float:
    return sum(one[0] for one in excess.values()) / max(1, len(excess))


def _diagonals(job: Job) -> dict[str, torch.Tensor]:
    """Return the importance matrix: the mean square of the inputs of every map and of the head."""
    found = {}
    for place in job.each_block():
        for name, known in block_statistics(job.statistics(), place).items():
            if known.input_moment is not None:
                found[f"{name}.weight"] = known.input_moment.diagonal()
    tables = Tables(job)
    found[tables.names[-1]] = tables.moment().diagonal()
    return found


if __name__ == "__main__":
    told(main)
