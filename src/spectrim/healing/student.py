"""The smaller model as one whole that can be trained, and what becomes of it as files again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from spectrim.healing.balanced import pivot
from spectrim.healing.judging import make_trainable
from spectrim.healing.learned_codes import settle
from spectrim.job.blocks import current_block, write_block
from spectrim.job.job import Job, load_rest
from spectrim.job.repeats import repeats
from spectrim.walk.walk import HEAD_CHUNK, BlockWalk

Loss = Callable[[Tensor, slice], Tensor]  # (hidden states of some tokens, which) → their loss
Prepare = Callable[[nn.Module], nn.Module]  # a block, made ready for training


def student(job: Job, prepare: Prepare) -> PreTrainedModel:
    """Return the whole model as it is now, to be trained.

    Its blocks are in float32 and as ``prepare`` leaves them; repeated ones share parameters.
    """
    model: PreTrainedModel = copy.deepcopy(job.model)
    load_rest(model, job.rest(), job.compute_dtype)
    for place in job.each_block():
        blocks: Any = model.get_submodule(place.stack.path)
        block = current_block(job, place, torch.float32)
        blocks[place.index] = prepare(block)
    for name, twin in repeats(job).items():
        _share(model.get_submodule(twin), model.get_submodule(name))
    model.eval().requires_grad_(False)
    return model


def _share(owner: nn.Module, other: nn.Module) -> None:
    for name, parameter in owner.named_parameters():
        path, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(path), leaf, parameter)


def trainable_parameters(job: Job, model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Let the blocks and the norms outside them be trained; return their parameters by name."""
    found: dict[str, nn.Parameter] = {}
    for stack in job.architecture.stacks:
        blocks = make_trainable(job, model.get_submodule(stack.path))
        found |= {f"{stack.path}.{name}": parameter for name, parameter in blocks.items()}
    return found | _norms(job, model)


def _norms(job: Job, model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Make the vectors outside the blocks, the head's apart, float32 and trained."""
    head = model.get_output_embeddings()
    held = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    stacks = tuple(f"{stack.path}." for stack in job.architecture.stacks)
    found = {}
    for name, parameter in list(model.named_parameters()):
        if not name.startswith(stacks) and parameter.dim() == 1 and id(parameter) not in held:
            path, _, leaf = name.rpartition(".")
            found[name] = nn.Parameter(parameter.detach().float())
            setattr(model.get_submodule(path), leaf, found[name])
    return found


def write(job: Job, folder: Path, model: PreTrainedModel) -> dict[str, Tensor]:
    """Write all blocks of a trained model; return what is outside them, as it is stored."""
    now, rest = dict(model.named_parameters()), job.rest()
    changed = {
        name: now[name].detach().to(kept.dtype)
        for name, kept in rest.items()
        if name in now and now[name].requires_grad
    }
    for place in job.each_block():
        if not job.block_file(folder, place).exists():
            block = model.get_submodule(place.name)
            write_block(job, folder, place, settle(pivot(block)))
    return {**rest, **changed}


class Reader:
    """Runs a model as far as its head, which is then asked for a few tokens at a time.

    In the place of the head stands a module that keeps what it is given. So every model's own
    forward is used, and logits of a whole batch are never held.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        self.head = head
        self.caught = _Caught()
        model.set_output_embeddings(self.caught)

    def hidden(
        self, run: nn.Module, walk: BlockWalk, start: int
    ) -> Float[Tensor, "counted hidden"]:
        """Return what the head is given for every token that a batch predicts.

        run: the model, or what accelerate has made of it.
        """
        device = next(run.parameters()).device
        given = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in walk.keywords(start).items()
        }
        run(**given)
        assert self.caught.hidden is not None
        hidden, self.caught.hidden = self.caught.hidden, None
        return hidden[(walk.targets(start) != -100).to(device)]

    def logits(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens vocab"]:
        """Return the logits in float32; two families do something behind their head."""
        head = self.head.to(hidden.device)  # out of the model, so accelerate has not moved it
        logits: Tensor = head(hidden.to(next(head.parameters()).dtype)).float()
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        added = getattr(self.model, "final_logits_bias", None)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return logits if added is None else logits + added.to(logits)

    def close(self) -> None:
        """Give the model its head back."""
        self.model.set_output_embeddings(self.head)


class _Caught(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden
        return hidden.new_zeros(1, 1, 1)


class InChunks(torch.autograd.Function):
    """Σ of a loss over a few tokens at a time, its gradient taken at once, logits then let go."""

    @staticmethod
    def forward(ctx: Any, hidden: Float[Tensor, "tokens hidden"], loss: Loss) -> Tensor:
        """Return the sum, a scalar in float32."""
        gradient, total = torch.empty_like(hidden), hidden.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(hidden), HEAD_CHUNK):
            part = slice(begin, begin + HEAD_CHUNK)
            with torch.enable_grad():
                leaf = hidden[part].detach().requires_grad_()
                found = loss(leaf, part)
            (gradient[part],) = torch.autograd.grad(found, leaf)
            total += found.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        """Return the gradient that was kept, times what comes from above."""
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None
