"""The walk against the whole model: the same logits, losses and gradients, padded or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from spectrim.job.job import load_rest
from spectrim.model import sources
from spectrim.model.architectures import architecture_of
from spectrim.walk.stream import Stream
from spectrim.walk.walk import BlockWalk
from tiny_folders import change_tensors
from tiny_models import FAMILIES
from tiny_runs import family_folder
from tiny_walks import model_of, text, walk_of, wanted, whole

PADDED = pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])


def behind_last_block(walk: BlockWalk, start: int) -> Tensor:
    """Return the hidden states of one batch behind the last block."""
    encoder = None
    with torch.no_grad():
        for stack in walk.architecture.stacks:
            hidden = walk.enter(stack, start, encoder)
            for place in walk.places(stack):
                block = walk.block(place)
                hidden = walk.run(block, place, start, hidden, encoder)
            if walk.is_encoder_decoder and encoder is None:
                encoder = walk.encoded(hidden, start)
    return hidden


@PADDED
@pytest.mark.parametrize("family", FAMILIES)
def test_the_walk_ends_in_the_models_own_logits(family: str, padded: bool) -> None:
    model, read = model_of(family), text(padded)
    walk = walk_of(model, read)
    with torch.no_grad():
        for start in walk.starts:
            hidden = behind_last_block(walk, start)
            found = walk.logits(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:2], -1)
            assert torch.equal(found, whole(model, read, slice(start, start + walk.batch)))


@PADDED
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_their_gradient_are_those_of_the_whole_model(family: str, padded: bool) -> None:
    model, read = model_of(family), text(padded)
    walk = walk_of(model, read, batch=3)
    logits, targets = whole(model, read), wanted(model, read)
    each = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    counted = targets.flatten() != -100
    hidden = behind_last_block(walk, 0)
    torch.testing.assert_close(walk.losses(hidden, 0), each[counted], rtol=1e-5, atol=1e-6)
    assert walk.predicted() == int(counted.sum())
    swept = Stream(walk).through(walk.block).losses()
    torch.testing.assert_close(swept, each[counted], rtol=1e-5, atol=1e-6)

    leaf = hidden.clone().requires_grad_()
    logits = walk.logits(leaf.reshape(-1, leaf.shape[-1]))
    functional.cross_entropy(logits, targets.flatten(), reduction="sum").backward()
    gradient, nats = walk.loss_gradient(hidden, 0)
    torch.testing.assert_close(gradient, leaf.grad)
    assert nats == pytest.approx(float(each[counted].detach().sum()), rel=1e-5)


# from a folder


@pytest.mark.parametrize("apart", [False, True], ids=["tied", "apart"])
def test_the_skeleton_of_a_folder_walks_like_the_model_in_it(apart: bool, tmp_path: Path) -> None:
    """Also where its files hold another head than the config, which ties it, makes one expect."""
    folder = family_folder(tmp_path / "source", "gemma3_text")

    def untie(held: dict[str, Tensor]) -> None:
        if apart:
            held["lm_head.weight"] = held["model.embed_tokens.weight"].flip(0).clone()

    change_tensors(folder, untie)
    source = sources.resolve(str(folder), tmp_path / "cache")
    skeleton = sources.skeleton(source)
    weights = sources.Weights(source.folder, skeleton)
    stacks = tuple(f"{stack.path}." for stack in architecture_of(skeleton.config).stacks)
    rest = weights.read(name for name in weights.names() if not name.startswith(stacks))
    load_rest(skeleton, rest, weights.dtype())
    read = text(padded=False)
    walk = BlockWalk(skeleton, architecture_of(skeleton.config), weights, read, 3)
    hidden = behind_last_block(walk, 0)
    with torch.no_grad():
        found = walk.logits(hidden.reshape(-1, hidden.shape[-1])).view(*hidden.shape[:2], -1)
        assert torch.equal(found, whole(sources.model(source), read))
    assert load_file(folder / "model.safetensors").keys() >= set(rest)
