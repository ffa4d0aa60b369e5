"""The inputs of every site on a little text, for methods that train on more than moments."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from spectrim.calibration import Tokens
from spectrim.job import Job
from spectrim.refinement import catching


def sampled(job: Job, sequences: int) -> Iterator[dict[str, Tensor]]:
    """Yield for each block in order the inputs [tokens, in] of its sites, by name, as stored.

    A site that no token reaches (an expert) is left out.
    """
    tokens = job.splits.calibration
    walk = job.walk(Tokens(tokens.ids[:sequences], tokens.mask[:sequences]))
    encoded: dict[int, Tensor] = {}
    hidden: dict[int, Tensor] = {}
    for stack, index in job.each_block():
        if index == 0:
            if hidden and walk.is_encoder_decoder:
                encoded = {at: walk.encoded(states, at) for at, states in hidden.items()}
            hidden = {at: walk.start(stack, at, encoded.get(at)) for at in walk.starts}
        block, prefix = walk.block(stack, index), f"{stack.path}.{index}."
        names = [site.name.removeprefix(prefix) for site in job.block_sites(stack, index)]
        caught: dict[str, list[Tensor]] = {}
        for at in walk.starts:
            with catching(block, names) as inputs, torch.no_grad():
                hidden[at] = walk.run(block, stack, index, at, hidden[at], encoded.get(at))
            for name, x in inputs.items():
                caught.setdefault(prefix + name, []).append(x.reshape(-1, x.shape[-1]))
        yield {name: torch.cat(parts) for name, parts in caught.items()}
