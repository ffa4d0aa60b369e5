"""Trains a small BART to summarise dialogues and sweeps the rank of its K, Q, V and O.

    python examples/bart_summariser.py -o run/ [--data ../shared/data] [--minutes 10]

All attention of encoder and decoder, cross-attention included, is cut to one rank after another by
three methods and stored in two ways; everything else stays as it is. Statistics are collected once,
on pairs of the training split: the encoder reads the dialogue and the decoder the summary. Dense
and smaller models are measured alike, on dialogues that neither training nor calibration saw. Every
row is kept in the run folder, so that an interrupted run continues; results.md shows them all.

Needs: pip install "spectrim[evaluation]" (for rouge-score), and the data. The experiment is that of
a thesis on low-rank BART (A. Poulsen, Aarhus, 2024), with two factors in the place of three.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import bart_results
import bart_training
import torch
import transformers
from bart_training import Settings, Splits, encoded, padded
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from spectrim.errors import SpectrimError
from spectrim.formats import formats
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.job.output import write_model, write_record
from spectrim.methods import methods
from spectrim.metrics.multiply_adds import multiply_adds
from spectrim.metrics.size import bytes_on_disk
from spectrim.metrics.summarisation import rouge
from spectrim.model import sources
from spectrim.outputs.folder import output_folder
from spectrim.recipe.recipe import Recipe
from spectrim.stages import stages
from spectrim.text import tokens
from spectrim.text.tokens import Tokens
from spectrim.version import __version__

METHODS = ("truncated_svd", "whitened_svd", "loss_aware_svd")
FORMATS = ("low_rank", "pivoted")
PROTECTED = ("up$", "down$")  # roles: what is no attention
BATCH, TIMED_TOKENS, ROUNDS = 16, 32, 5


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, sweep, measure, and write results.json, results.md and the figures."""
    asked = _parser().parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    try:
        splits = bart_training.read(asked.data, asked.seed, asked.limit)
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    settings = Settings(asked.minutes, asked.seed, asked.width, asked.blocks, asked.vocabulary)
    dense = asked.output / "dense"
    about = {
        "training": bart_training.train(dense, asked.data, splits, settings),
        **_about(splits, asked),
    }
    sweep = Sweep(asked.output, splits, asked.seed, asked.calibration)
    rows = [sweep.kept("dense", sweep.full, "dense", lambda: dense)]
    for part in asked.ranks:
        rank = max(1, round(part * sweep.full))
        for method in asked.methods:
            rows += [row for form in FORMATS if (row := sweep.row(method, rank, form))]
    bart_results.write(asked.output, about | sweep.about(), rows, splits.report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    data = Path(os.environ.get("SPECTRIM_DATA", "../shared/data"))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--data", type=Path, default=data, help="folder with dialogue/…")
    parser.add_argument("--minutes", type=float, default=10, help="of training")
    parser.add_argument("--ranks", type=_parts, default="0.8,0.6,0.4,0.3,0.2", help="of full rank")
    parser.add_argument("--methods", type=_methods, default=",".join(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, help="use so many dialogues only")
    parser.add_argument("--calibration", type=int, default=200, help="dialogues for statistics")
    parser.add_argument("--width", type=int, default=192, help="of the hidden states")
    parser.add_argument("--blocks", type=int, default=2, help="of encoder and decoder each")
    parser.add_argument("--vocabulary", type=int, default=2000)
    return parser


def _parts(text: str) -> list[float]:
    found = sorted({float(part) for part in text.split(",")}, reverse=True)
    if not found or not all(0 < part < 1 for part in found):
        raise argparse.ArgumentTypeError("write parts of the full rank, such as 0.6,0.3")
    return found


def _methods(text: str) -> list[str]:
    try:
        return [methods.check(name) for name in text.split(",")]
    except SpectrimError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _about(splits: Splits, asked: argparse.Namespace) -> dict[str, Any]:
    return {
        "data": [name for name in bart_training.FILES if (asked.data / name).is_file()],
        "splits": {name: len(rows) for name, rows in vars(splits).items()},
        "calibration": min(asked.calibration, len(splits.train)),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, "
        f"torch on {torch.get_num_threads()} thread(s)",
        "versions": {"spectrim": __version__, "torch": torch.__version__,
                     "transformers": transformers.__version__},
    }  # fmt: skip


class Sweep:
    """One trained model cut to many ranks: each row is made, measured and kept once."""

    def __init__(self, output: Path, splits: Splits, seed: int, calibrating: int) -> None:
        self.output, self.splits, self.seed, self.calibrating = output, splits, seed, calibrating
        self.tokenizer = AutoTokenizer.from_pretrained(output / "dense")
        self.dense = AutoModelForSeq2SeqLM.from_pretrained(output / "dense").eval()
        self.source = sources.resolve(str(output / "dense"), output / "cache")
        self.full = int(self.dense.config.d_model)
        self.report = encoded(self.tokenizer, splits.report)
        self.search = encoded(self.tokenizer, splits.search)
        pairs = encoded(self.tokenizer, splits.train[:calibrating])
        self.job_splits = tokens.Splits(*map(self._tokens, (pairs, self.search, self.report)))

    def _tokens(self, pairs: bart_training.Pairs) -> Tokens:
        """Return pairs as spectrim reads them: half a window for the encoder, half to predict."""
        pad, half = self.tokenizer.pad_token_id, bart_training.DIALOGUE
        sides = [padded([pair[side] for pair in pairs], -1, half) for side in (0, 1)]
        ids = torch.cat(sides, dim=1)
        return Tokens(ids.where(ids >= 0, pad), ids >= 0)

    def about(self) -> dict[str, Any]:
        """Return how much of the model the swept maps are, and what the statistics saw.

        mismatched_loss is what the dense model loses where every summary is given the dialogue of
        another: one that is no higher says that the model does not read, and that a sweep of its
        attention says nothing.
        """
        whole = sum(one.numel() for one in self.dense.parameters())
        read = self.job_splits.calibration
        half = read.ids.shape[1] // 2
        others = [*self.report[1:], self.report[0]]
        mixed = [(other[0], own[1]) for own, other in zip(self.report, others, strict=True)]
        return {
            "mismatched_loss": bart_training.loss(self.dense, mixed),
            "full_rank": self.full, "attention": self._maps() * self.full**2 / whole,
            "calibration_tokens": {"dialogues": int(read.mask[:, :half].sum()),
                                   "summaries": int(read.mask[:, half:].sum())},
        }  # fmt: skip

    def _maps(self) -> int:
        config = self.dense.config  # a decoder block has self- and cross-attention
        return 4 * int(config.encoder_layers) + 8 * int(config.decoder_layers)

    def row(self, method: str, rank: int, form: str) -> dict[str, Any] | None:
        """Return what is measured at a rank, None where the format would store no less."""
        if formats.get(form).numbers(self.full, self.full, rank) >= self.full**2:
            return None
        return self.kept(method, rank, form, lambda: self._shrunk(method, rank, form))

    def kept(self, method: str, rank: int, form: str, make: Callable[[], Path]) -> dict[str, Any]:
        """Return a row, measured unless an earlier run already has."""
        told = f"seed{self.seed}-calibration{self.calibrating}-{self.source.fingerprint[:8]}"
        file = self.output / "rows" / f"{method}-{rank}-{form}-{told}.json"
        if not file.is_file():
            row = {"method": method, "rank": rank, "format": form, **self._measured(make())}
            file.parent.mkdir(exist_ok=True)
            file.with_suffix(".partial").write_text(json.dumps(row, indent=1), encoding="utf-8")
            file.with_suffix(".partial").replace(file)
            print(f"{method}-{rank}-{form}: ROUGE-L {100 * row['rougeL']:.2f}, "
                  f"loss {row['loss']:.3f}, runtime {row['runtime']:.2f}", flush=True)  # fmt: skip
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _shrunk(self, method: str, rank: int, form: str) -> Path:
        """Return a folder with the model whose attention maps all have this rank."""
        recipe = self._recipe(method, rank, form)
        job = self._job(recipe)
        for stage in recipe.stages:
            stages.get(stage.name)(job, stage.options)
        assert job.plan is not None
        ranks = {one.rank for one in job.plan.decisions if one.format != "dense"}
        assert ranks == {rank}, f"asked for rank {rank}, got {sorted(ranks)}"
        small = self.output / "small" / f"{method}-{rank}-{form}"
        with output_folder(small, "bart_summariser") as folder:
            write_model(job, folder)
            write_record(job, recipe, folder)
        shutil.rmtree(job.work)
        return small

    def _recipe(self, method: str, rank: int, form: str) -> Recipe:
        numbers = formats.get(form).numbers(self.full, self.full, rank)
        dense = self.full**2
        feed_forward = sum(
            site.weight.numel()
            for name, site in self.dense.named_modules()
            if name.endswith(("fc1", "fc2"))
        )
        whole = self._maps() * dense + feed_forward
        keep = (self._maps() * numbers + feed_forward) / whole
        options = {"method": method, "format": form, "allocator": "uniform", "refine": "off",
                   "rank_multiple": 1, "protect": PROTECTED}  # fmt: skip
        changes = {f"factorize.{name}": value for name, value in options.items()}
        text = self.output / "training_text.txt"
        text.write_text("\n".join(map(str, self.splits.train)), encoding="utf-8")
        changes |= {"model": str(self.output / "dense"), "seed": self.seed}
        changes |= {"calibration.text": str(text), "calibration.tokens": "2x64"}
        return Recipe.build(None, {"keep": f"{100 * keep:.10f}% of linear", **changes})

    def _job(self, recipe: Recipe) -> Job:
        """Return a job whose statistics come from pairs, collected once and kept in the cache.

        Running text, cut in two halves, is not what this encoder and this decoder read.
        """
        job = open_job(recipe, self.source, self.output / "cache", lambda *_: None)
        job.splits = self.job_splits
        job.text = "dialogues and summaries of the training split"
        job.work = self.output / "work"
        shutil.rmtree(job.work, ignore_errors=True)
        return job

    def _measured(self, folder: Path) -> dict[str, Any]:
        model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
        texts = self._summaries(model)
        references = [row["summary"] for row in self.splits.report]
        each = [rouge(*both) for both in zip(references, texts, strict=True)]
        names = ("rouge1", "rouge2", "rougeL")
        return {
            **{name: sum(one[name] for one in each) / len(each) for name in names},
            "each": {name: [round(one[name], 5) for one in each] for name in names},
            "loss": bart_training.loss(model, self.report),
            "search_loss": bart_training.loss(model, self.search),
            **self._runtime(model),
            "multiply_adds": multiply_adds(model).maps,
            "bytes": bytes_on_disk(folder),
            "texts": texts,
        }

    def _summaries(self, model: Any) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(self.report), BATCH):
            texts += self._generated(model, self.report[start : start + BATCH],
                                     max_new_tokens=bart_training.SUMMARY)  # fmt: skip
        return [text.strip() for text in texts]

    def _generated(self, model: Any, pairs: bart_training.Pairs, **length: int) -> list[str]:
        read = bart_training.inputs(pairs, self.tokenizer.pad_token_id)
        del read["labels"]
        with torch.no_grad():
            ids = model.generate(**read, do_sample=False, num_beams=1, **length)
        return list(self.tokenizer.batch_decode(ids, skip_special_tokens=True))

    def _runtime(self, model: Any) -> dict[str, Any]:
        """Return the time to write a batch of summaries of equal length, as a ratio to dense.

        Both models write in turns in the same process; one round before the others does not count.
        """
        models = {"dense": self.dense, "small": model}
        length = {"min_new_tokens": TIMED_TOKENS, "max_new_tokens": TIMED_TOKENS}
        taken: list[dict[str, float]] = []
        for number in range(-1, ROUNDS):
            times = {}
            for name in list(models)[:: 1 if number % 2 else -1]:
                began = time.perf_counter()
                self._generated(models[name], self.report[:BATCH], **length)
                times[name] = time.perf_counter() - began
            taken += [times] if number >= 0 else []
        ratios = [times["small"] / times["dense"] for times in taken]
        return {
            "runtime": median(ratios),
            "runtime_range": [min(ratios), max(ratios)],
            "seconds": median(times["small"] for times in taken),
        }


if __name__ == "__main__":
    main()
