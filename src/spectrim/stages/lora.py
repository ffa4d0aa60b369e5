"""Train small additions to the maps with peft (LoRA) and merge them, so that nothing remains.

An addition is to a dense map's matrix, or to each factor that a map is stored as.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import Field
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear
from spectrim.healing.adam import Adam
from spectrim.healing.end_to_end import Healing, Ready, heal
from spectrim.healing.judging import ensure_plan
from spectrim.job.job import Job
from spectrim.job.repeats import repeats
from spectrim.recipe.options import Regex

LEAVES = ("changed maps", "trained")
NOTE = "healed"
REFUSES = {
    "zeros": "lora would fill the zeros that {earlier} made; take distil instead",
    "all packed": "behind {earlier} all maps are stored as whole numbers, to which lora cannot be "
    "merged; put lora before that stage, or take distil, which trains scales, offsets and codes",
}
ADAPTER = "healing"  # what peft calls the additions


class Options(Healing):
    """The stage that trains additions of low rank to all maps and merges them afterwards.

    rank: of the additions. alpha: they are multiplied by alpha / rank.
    targets: regular expressions; a matrix or factor is trained where one is found in its name.
    accumulation: batches whose gradients are added up for one step.
    learning_rate: the highest; of the additions, which begin at zero.
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[Regex, ...] = (".",)
    accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)


def lora(job: Job, options: Options) -> None:
    """Train and merge; the model stays as it was where the search split does not gain.

    Raises:
        SpectrimError: peft is missing, weights are whole numbers or sparse, blocks are stored once
            and run twice, or nothing is targeted.
    """
    if find_spec("peft") is None:
        raise SpectrimError("lora needs peft; install it with pip install 'spectrim[heal]'")
    if job.sparsified:
        raise SpectrimError(REFUSES["zeros"].format(earlier="sparsify"))
    ensure_plan(job)
    if repeats(job):
        raise SpectrimError(
            "some blocks are stored once and run twice, and lora would part them; take distil"
        )

    def ready(model: PreTrainedModel) -> Ready:
        return adapted(job, model, options)

    # Additions mean nothing without the very factors that they are added to, which are read from
    # files, where balanced ones would be computed anew.
    heal(job, "lora", options, ready, lambda: {"rank": options.rank}, lambda block: block)


def adapted(job: Job, model: PreTrainedModel, options: Options) -> Ready:
    """Return a model with additions in it, and how to merge them.

    Raises:
        SpectrimError: weights are whole numbers, or nothing is targeted.
    """
    from peft import LoraConfig, inject_adapter_in_model

    turned = straighten(model)
    maps, factors = targets(job, model, options.targets)
    if not maps and not factors:
        raise SpectrimError("no matrix is targeted by lora; take other targets, such as 'down'")
    config = LoraConfig(
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules=maps or None,
        target_parameters=factors or None,
        lora_dropout=0.0,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(job.seed)
    try:
        inject_adapter_in_model(config, model, ADAPTER)
    finally:
        torch.random.set_rng_state(state)
    found = {name: p for name, p in model.named_parameters() if "lora_" in name}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in found)
    return Ready(found, Adam(found), lambda: merge(model, turned))


def targets(
    job: Job, model: PreTrainedModel, wanted: tuple[str, ...]
) -> tuple[list[str], list[str]]:
    """Return the names of the dense maps and of the factors inside the blocks that are trained.

    A map that other maps read (a shared basis) is left: they would not see what is added to it.

    Raises:
        SpectrimError: a map holds whole numbers, to which nothing can be merged.
    """
    maps: list[str] = []
    factors: list[str] = []
    for stack in job.architecture.stacks:
        for path, module in model.get_submodule(stack.path).named_modules():
            name = f"{stack.path}.{path}"
            if isinstance(module, nn.Linear) and _is_wanted(name, wanted):
                maps.append(name)
            elif isinstance(module, FactoredLinear) and not _shares(module):
                _refuse_integers(name, module)
                factors += [one for one in _matrices(name, module) if _is_wanted(one, wanted)]
    return maps, factors


def _is_wanted(name: str, wanted: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in wanted)


def _shares(module: FactoredLinear) -> bool:
    return module.follows or module.leads


def _matrices(name: str, module: FactoredLinear) -> list[str]:
    held = module.named_parameters(recurse=False)
    return [f"{name}.{leaf}" for leaf, parameter in held if parameter.dim() == 2]


def _refuse_integers(name: str, module: nn.Module) -> None:
    whole = [t for t in module.buffers() if t.dtype in (torch.int8, torch.uint8, torch.int32)]
    if any(tensor.dim() > 1 for tensor in whole):
        _, _, reason = REFUSES["all packed"].partition("all maps are ")
        raise SpectrimError(f"{name} is {reason}")


def straighten(model: PreTrainedModel) -> dict[str, Conv1D]:
    """Put a linear map in the place of each Conv1D of GPT-2 and return these by name.

    Conv1D holds its matrix turned, for which peft wants a setting that it takes for nothing else.
    """
    found = {name: one for name, one in model.named_modules() if isinstance(one, Conv1D)}
    for name, turned in found.items():
        linear = nn.Linear(turned.nx, turned.nf, device="meta")
        linear.weight = nn.Parameter(turned.weight.detach().T.contiguous(), False)
        linear.bias = turned.bias
        model.set_submodule(name, linear)
    return found


def merge(model: PreTrainedModel, turned: dict[str, Conv1D]) -> None:
    """Add what was trained to the matrices and put every map back in its place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: Any = [(n, m) for n, m in model.named_modules() if isinstance(m, BaseTunerLayer)]
    outermost = [
        (name, layer)
        for name, layer in layers
        if not any(name.startswith(f"{other}.") for other, _ in layers)
    ]
    for name, layer in outermost:
        within: Any = layer
        while hasattr(within, "base_layer"):  # each factor of a map has a layer of its own
            within.merge()
            within = within.base_layer
        model.set_submodule(name, within)
    for name, original in turned.items():
        straight: Any = model.get_submodule(name)
        original.weight.data.copy_(straight.weight.detach().T)
        model.set_submodule(name, original)
