"""Set weights to zero: WANDA, magnitude or SparseGPT, N of every M or a part of each row.

Zeros are stored like any other number: nothing gets smaller by this. What is left is an ordinary
dense model, for hardware and formats that make use of zeros, and for the stages that follow.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor, nn

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.job.remake import remake
from spectrim.model.architectures import Place
from spectrim.model.experts import unpack_experts
from spectrim.model.sites import Site, protected, weight
from spectrim.recipe.options import Part, Regex
from spectrim.rounding.sparsity import Pattern, magnitude, mask, sparsegpt, wanda
from spectrim.walk.moments import Damping, damped, expected_loss
from spectrim.walk.statistics import Statistics, block_statistics

SOLVING = 1e-2  # of the mean diagonal of A, added before it is inverted, as SparseGPT does
LEAVES = ("zeros", "damage")
CLEARS = ("trained",)  # which a correction of the damage would not undo
REFUSES = {
    "changed maps": "sparsify needs dense weights, and an earlier stage has cut them; "
    "put sparsify first"
}
NOTE = "sparsified"  # under which config.json and the run's notes say what was done
REPORT = (
    "In {sites} linear maps {pattern} of the weights were kept (chosen by {score}) and the others "
    "set to zero, which stores as many numbers as before; predicted to cost {predicted_loss:plain} "
    "nats/token.[without_tokens| {without_tokens:count} maps that no token came to were left "
    "alone.]"
)


def _unquoted(value: object) -> object:
    """Undo YAML 1.1, to which a bare 2:4 is a number of base 60, 2 x 60 + 4."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 60:
        return f"{value // 60}:{value % 60}"
    return value


def _pattern(text: str) -> str:
    Pattern.parse(text)
    return text


class Options(Part):
    """The stage that sets weights to zero, and saves no byte by it.

    score: by what the weights of a row are compared: "wanda", the size of a weight times that of
        its input; "magnitude", its size alone.
    pattern: what is kept. "N:M" keeps N of every M consecutive inputs of a row, as hardware and
        most papers count (2:4 has two that are not zero in every four; a few count those removed).
        "70%" keeps that part of each row, wherever it is; papers give the 30 % that goes.
    update: change the weights that stay in closed form so that they make up for the others
        (SparseGPT). What is dropped is then chosen by what that costs, in the place of "wanda".
    protect: regular expressions; a site keeps its weights where one is found in its name, its
        role, or "block N".
    """

    score: Literal["wanda", "magnitude"] = "wanda"
    pattern: Annotated[str, BeforeValidator(_unquoted), AfterValidator(_pattern)] = "2:4"
    update: bool = False
    protect: tuple[Regex, ...] = ()


def sparsify(job: Job, options: Options) -> None:
    """Go on with a model whose linear maps hold zeros; ``job.notes`` says what they should cost.

    Raises:
        SpectrimError: a site's inputs do not fall into whole groups, no site is left to work on,
            the options contradict each other, or a stage has cut the model before.
    """
    refuse(job, options)
    config: dict[str, Any] = {}
    before = job.walk(job.splits.search).block
    key = ("sparsify", options.model_dump(mode="json"), job.statistics_key)
    remake(job, key, config, _blocks(job, options, config))
    job.reference = before
    job.sparsified = True
    said = json.loads((job.source.folder / "config.json").read_text(encoding="utf-8"))
    job.notes[NOTE] = [*job.notes.get(NOTE, []), said[NOTE]]


def refuse(job: Job, options: Options) -> None:
    """Raise SpectrimError for what cannot be done, before the long work."""
    if job.blocks is not None:
        raise SpectrimError(REFUSES["changed maps"])
    if options.update and options.score == "magnitude":
        raise SpectrimError(
            "with update, sparsify drops what SparseGPT's update can best make up for, not the "
            "smallest; leave out score: magnitude, or update"
        )
    pattern = Pattern.parse(options.pattern)
    sites = [site for place in job.each_block() for site in _sites(job, options, place)]
    if not sites:
        raise SpectrimError("every linear map is protected from sparsify; protect fewer")
    for site in sites:
        if not pattern.fits(site.in_features):
            raise SpectrimError(
                f"{site.name} has {site.in_features} inputs, which groups of {pattern.group} do "
                f"not divide; take another pattern than '{options.pattern}', or protect it"
            )


def _sites(job: Job, options: Options, place: Place) -> list[Site]:
    return [site for site in job.block_sites(place) if not protected(site, options.protect)]


def _blocks(job: Job, options: Options, config: dict[str, Any]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of one sparse block after the other; then ``config`` gets the note."""
    statistics, places = job.statistics(), job.each_block()
    pattern, predicted = Pattern.parse(options.pattern), {}
    left: list[str] = []
    for done, place in enumerate(places, start=1):
        prefix = place.prefix
        tensors = job.weights.read_prefix(prefix)
        block, known = _around(job, prefix[:-1], tensors), block_statistics(statistics, place)
        for site in _sites(job, options, place):
            if known[site.name].tokens == 0 or known[site.name].gradient_moment is None:
                left.append(site.name)  # an expert that no token was routed to
                continue
            matrix = weight(block.get_submodule(site.name.removeprefix(prefix))).detach()
            before = matrix.clone()
            matrix.copy_(sparse(before, known[site.name], options, pattern))
            predicted[site.name] = expected_loss(before, matrix, known[site.name], Damping())
        yield {prefix + name: tensor for name, tensor in tensors.items()}
        job.progress(done, len(places), "setting weights to zero")
    config[NOTE] = {
        "pattern": options.pattern,
        "score": "sparsegpt" if options.update else options.score,
        "sites": len(predicted),
        "without_tokens": left,
        "predicted_loss": sum(predicted.values()),
    }


def _around(job: Job, name: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Return a block whose parameters are these very tensors, each expert a view of its part."""
    block = copy.deepcopy(job.model.get_submodule(name)).requires_grad_(False)
    block.load_state_dict(tensors, assign=True)
    if job.architecture.experts is not None:
        unpack_experts(block, job.architecture.experts)
    return block


def sparse(
    matrix: Float[Tensor, "out in"], known: Statistics, options: Options, pattern: Pattern
) -> Float[Tensor, "out in"]:
    """Return the matrix with zeros where the pattern wants them.

    Raises:
        ValueError: the statistics hold no input moment.
    """
    if known.input_moment is None:
        raise ValueError("sparsify needs the input moment")
    if options.update:
        return sparsegpt(matrix, damped(known.input_moment, SOLVING), pattern)
    by_size = options.score == "magnitude"
    scores = magnitude(matrix) if by_size else wanda(matrix, known.input_moment)
    return torch.where(mask(scores, pattern), matrix, 0.0)
