"""The inputs of every site on a little text, for methods that train on more than moments."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from spectrim.job.job import Job
from spectrim.text.tokens import Tokens
from spectrim.walk.crossed import catching
from spectrim.walk.stream import Stream


def sampled(job: Job, sequences: int) -> Iterator[dict[str, Tensor]]:
    """Yield for each block in order the inputs [tokens, in] of its sites, by name, as stored.

    The sequences are spread evenly over the calibration split; a site's inputs are in their order,
    padding excluded. A site that no token reaches (an expert) is left out.
    """
    walk = job.walk(spread(job.splits.calibration, sequences))
    stream = Stream(walk)
    for place in job.each_block():
        stream = stream.reach(place)
        block, prefix = walk.block(place), place.prefix
        names = [site.name.removeprefix(prefix) for site in job.block_sites(place)]
        caught: dict[str, list[Tensor]] = {}
        behind: dict[int, Tensor] = {}
        for at in walk.starts:
            with catching(block, names) as inputs, torch.no_grad():
                behind[at] = stream.run(block, place, at)
            for name, x in inputs.items():
                read = walk.architecture.stacks[0] if x is stream.encoded.get(at) else place.stack
                mask = walk.stack_mask(read, at).reshape(-1)
                rows = _text(x, mask, block.get_submodule(name))
                caught.setdefault(prefix + name, []).append(rows)
        stream = stream.with_hidden(behind)
        found = {name: torch.cat(parts) for name, parts in caught.items()}
        yield {name: rows for name, rows in found.items() if len(rows)}


def spread(tokens: Tokens, sequences: int) -> Tokens:
    """Return so many of the sequences (all, if fewer), at even distances."""
    many = min(sequences, len(tokens))
    places = torch.arange(many) * len(tokens) // many
    return Tokens(tokens.ids[places], tokens.mask[places])


def _text(
    x: Float[Tensor, "*batch in"], mask: Bool[Tensor, " tokens"], module: nn.Module
) -> Float[Tensor, "text in"]:
    """Return the inputs of the tokens that are text, in the order of the text."""
    rows = x.reshape(-1, x.shape[-1])
    routed = getattr(module, "token_index", None)  # set by Experts, which sort by choice first
    if routed is None:
        return rows[mask]
    order = routed.argsort()
    return rows[order][mask[routed[order]]]
