"""How many of the blocks' linear numbers are exact zeros; they are stored, so they save nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.formats import FactoredLinear
from spectrim.metrics import Measurement, Pair, Score
from spectrim.model import sites
from spectrim.model.experts import maps

STORED = "in full, like every other number; they save nothing"


@torch.no_grad()
def zeros(model: PreTrainedModel) -> float:
    """Return the share of exact zeros among the blocks' linear numbers, biases apart, 0 to 1.

    Raises:
        SpectrimError: the model's family is unknown.
    """
    found = numbers = 0
    for matrix in _matrices(model):
        found += matrix.numel() - int(matrix.count_nonzero())
        numbers += matrix.numel()
    return found / max(numbers, 1)


def measure(pair: Pair) -> Measurement:
    """Return the share of zeros in every model, where any has some.

    Baselines get none: their zeros are what rounding to few bits makes of small numbers.
    """
    labels = [label for label in pair.models if label not in pair.evaluation.baselines]
    shares = {label: zeros(pair.models[label]) for label in labels}
    if not any(shares.values()):
        return {}
    settings = {"stored": STORED}
    return {
        label: [Score("zeros", share, "share", "none", settings=settings)]
        for label, share in shares.items()
    }


def _matrices(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield what every linear map in the blocks stores; maps of packed experts as views.

    Numbers in few bits are left out: their zeros are what rounding makes of small numbers.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    for site in sites.find(model):
        if site.block < 0:
            continue
        if site.name not in modules:
            path = site.name.rsplit(".", 2)[0]
            for index, part, linear in maps(modules[path]):
                modules[f"{path}.{index}.{part}"] = linear
        module = modules[site.name]
        if isinstance(module, FactoredLinear) and module.rounded:
            continue
        if isinstance(module, FactoredLinear):
            yield from (one for one in module.parameters() if one is not module.bias)
        else:
            yield sites.weight(module)
