"""A model as one GGUF file within a number of bytes: the best mix of llama.cpp's own types."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from transformers.pytorch_utils import Conv1D

from spectrim.cutting.table_losses import Tables, table_offers
from spectrim.cutting.type_choice import DENSE, choose, predicted, refuse_smallest
from spectrim.cutting.type_losses import Offer, map_offers
from spectrim.cutting.types_made import Chosen, Made, carried_out
from spectrim.errors import SpectrimError
from spectrim.exporters import exporters
from spectrim.exporters._spliced import Packed, Splice
from spectrim.files import atomic_file, key_of, locked
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.architectures import architecture_of
from spectrim.model.runtime import Size
from spectrim.model.sites import Site, find
from spectrim.model.sources import Source
from spectrim.outputs.folder import output_file
from spectrim.outputs.manifest import is_export
from spectrim.outputs.refusals import refuse_file
from spectrim.processes import own
from spectrim.progress import Progress
from spectrim.recipe.recipe import Recipe
from spectrim.recipe.sizes import shown
from spectrim.rounding.ggml import loaded
from spectrim.verbs.refusals import refuse_smaller

STEPS = (
    ("opening the model",),  # and whatever else comes first, such as sampling a text
    ("forward sweep", "reverse sweep"),
    ("trying types", "trying types for embedding and head"),
    ("quantising",),
)
"""What is told of progress, in order."""


@dataclass(frozen=True)
class Report:
    """What was made: the file's bytes, how many matrices have each type, and what is lost."""

    bytes: int
    kinds: dict[str, int]
    predicted: float
    divergence: float
    loss: float
    dense_loss: float
    counted: str | None = None
    """What of a memory was not left for weights."""

    def __str__(self) -> str:
        """Return two lines for the terminal, or three."""
        kinds = ", ".join(f"{count} {name}" for name, count in self.kinds.items())
        return (
            f"{shown(self.bytes)}: {kinds}\n"
            f"loss on the search split {self.loss:.4f}, dense {self.dense_loss:.4f}; divergence "
            f"{self.divergence:.4f} nats per token (predicted {self.predicted:.4f})"
            + (f"\n{self.counted}" if self.counted else "")
        )


def for_llama_cpp(
    asked: Recipe, size: Size, output: Path, *, cache: Path, progress: Progress
) -> Report:
    """Write a GGUF file that is no larger than asked for, and return what was made.

    asked: says model, calibration, seed and whether remote code is trusted; its stages do not
    count. The same seed gives the same file.

    Raises:
        SpectrimError: the output is not ours to write, the model has no form in llama.cpp or is of
            a kind that is not covered, the size is too small, or llama.cpp's quantiser is not
            installed.
    """
    loaded()
    refuse_file(output, is_export)
    progress = _by_steps(progress)
    progress(0, 1, "opening the model")
    source = sources.resolve(asked.model, cache, trust_remote_code=asked.trust_remote_code)
    refuse_smaller(source, "shrink")
    sites, budget = _within(source, size)
    progress(1, 1, "opening the model")
    with _work(source, output, cache) as work:
        dense = work / "dense.gguf"
        if not dense.exists():
            with atomic_file(dense) as partial:
                exporters.get("gguf")(source.folder, partial, progress)
        splice = Splice(dense, [f"{site.name}.weight" for site in sites])
        room = budget - splice.fixed()
        refuse_smallest(_shapes(sites), room)
        job = open_job(asked, source, cache, progress)
        job.work = work / job.statistics_key
        made = _written(job, splice, room, output)
        return replace(made, counted=size.counted(job.model.config))


@contextmanager
def _work(source: Source, output: Path, cache: Path) -> Iterator[Path]:
    """Give the folder of the cache from which an interrupted run goes on; it is gone at the end.

    Each output has its own, whatever else is made of the same model meanwhile.
    """
    name = own(key_of("work", 3, source.fingerprint, str(output.absolute())))
    work = cache / "types" / name
    with locked(work):
        work.mkdir(parents=True, exist_ok=True)
        try:
            yield work
        except SpectrimError:  # a run with the same words ends here again
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def _by_steps(progress: Progress) -> Progress:
    """Return a progress that also says which step of all steps the work belongs to."""

    def told(done: int, total: int, what: str) -> None:
        step = next((at for at, named in enumerate(STEPS, start=1) if what in named), 1)
        progress(done, total, f"step {step} of {len(STEPS)}: {what}")

    return told


def _within(source: Source, size: Size) -> tuple[list[Site], int]:
    """Return the matrices of a model, and the bytes that its file may take.

    Raises:
        SpectrimError: of what needs no text to tell: the kind of model, and the size.
    """
    model = sources.skeleton(source)
    sites = find(model)
    if len(architecture_of(model.config).stacks) > 1:
        raise SpectrimError(
            f"{source.name} is an encoder-decoder, for which no types are chosen; shrink it "
            "without --for"
        )
    if any("expert" in site.role for site in sites):
        raise SpectrimError(
            f"{source.name} is a mixture of experts, which GGUF files hold in one tensor each "
            "kind; no types are chosen for that yet, so shrink it without --for"
        )
    budget = size.of(sources.Weights(source.folder, model).bytes(), model.config)
    refuse_smallest(_shapes(sites), budget)
    return sites, budget


def _shapes(sites: list[Site]) -> list[tuple[int, int]]:
    return [(site.out_features, site.in_features) for site in sites]


def _written(job: Job, splice: Splice, room: int, output: Path) -> Report:
    """Write the file."""
    offers, chosen, made = _chosen(job, room)
    with output_file(output) as partial:
        splice.write(
            partial,
            lambda name: _packed(made, chosen, name),
            lambda name: _values(job, name),
        )
    kinds = Counter(chosen[offer.name].name for offer in offers)
    return Report(
        output.stat().st_size, dict(kinds.most_common()), predicted(offers, chosen),
        made.divergence, made.loss, made.dense_loss,
    )  # fmt: skip


def _chosen(job: Job, room: int) -> tuple[list[Offer], Chosen, Made]:
    numbers = sum(site.out_features * site.in_features for site in job.sites)
    mean = 8 * room / numbers
    offers = [*map_offers(job, mean), *table_offers(job, mean)]
    chosen = choose(offers, room)
    return offers, chosen, carried_out(job, chosen, job.work)


def _packed(made: Made, chosen: Chosen, name: str) -> Packed | None:
    return None if chosen[name] == DENSE else (made.packed[name], chosen[name])


def _values(job: Job, name: str) -> np.ndarray:
    """Return the numbers of a parameter, [out, in] float32, as the checkpoint holds them."""
    path = name.removesuffix(".weight")
    if name in Tables(job).names:
        return job.model.get_parameter(name).detach().float().numpy()
    tensor = job.weights.read([name])[name].float()
    turned = isinstance(job.model.get_submodule(path), Conv1D)
    return (tensor.T.contiguous() if turned else tensor).numpy()
