"""Whether weights lie on a four-bit grid: such a model was quantised before, whatever its dtype."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.metrics import Measurement, Pair, Score
from spectrim.model import sites

GROUP = 32
LEVELS = 16


def on_grid(weight: Float[Tensor, "out in"], *, nearly: float = 0.99, rows: int = 64) -> bool:
    """Return whether nearly every group of 32 neighbours has at most 16 distinct values.

    32 unrelated bf16 weights have 31 distinct values on average, so the two do not get confused.
    Constant groups say nothing and are left out; a matrix of them alone is on no grid.

    Args:
        weight: a dense matrix.
        nearly: the share of groups from which the answer is yes, 0 to 1.
        rows: how many rows, evenly spread, are looked at.
    """
    width = weight.shape[1] // GROUP * GROUP
    step = max(1, len(weight) // rows)
    groups = weight[::step, :width].detach().reshape(-1, GROUP).sort(dim=-1).values  # [groups, 32]
    distinct = 1 + (groups[:, 1:] != groups[:, :-1]).sum(dim=-1)
    told = distinct[distinct > 1]
    return len(told) > 0 and float((told <= LEVELS).float().mean()) >= nearly


def grid(model: PreTrainedModel) -> float:
    """Return the share of the blocks' dense linear numbers that lie on a four-bit grid, 0 to 1.

    Raises:
        SpectrimError: the model's family is unknown.
    """
    modules = dict(model.named_modules())
    found = {True: 0, False: 0}
    with torch.no_grad():
        for site in sites.find(model):
            module = modules.get(site.name)
            if site.block >= 0 and isinstance(module, nn.Linear):
                found[on_grid(module.weight)] += module.weight.numel()
    return found[True] / max(1, sum(found.values()))


def measure(pair: Pair) -> Measurement:
    """Return the share on a grid for every model."""
    return {
        label: [Score("four_bit_grid", grid(model), "share", "none")]
        for label, model in pair.models.items()
    }
