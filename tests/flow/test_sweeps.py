"""The statistics that the sweeps collect are those of plain hooks, however often interrupted."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.model.architectures import architecture_of
from spectrim.model.sites import find
from spectrim.text.tokens import Tokens
from spectrim.walk.draws import drawn
from spectrim.walk.statistics import Statistics, block_statistics
from spectrim.walk.sweeps import collect
from spectrim.walk.walk import BlockWalk
from tiny_models import FAMILIES, unpack
from tiny_walks import LENGTH, model_of, text, walk_of, wanted, whole

BATCH = 2  # of tiny_walks.walk_of
Expected = tuple[Statistics, list[Statistics]]
"""What is known of a site over all sequences, and of the even and the odd ones."""
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])


class Watched:
    """Inputs, and gradients at the outputs, of every site of a whole model: the plain way."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.routes: dict[str, Tensor] = {}
        for site in find(model):
            if site.block >= 0:
                model.get_submodule(site.name).register_forward_hook(self.keep(site.name))
        path = architecture_of(model.config).experts
        for name, module in model.named_modules():
            if path and name.endswith(path):
                module.register_forward_pre_hook(self.route(name))

    def keep(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
            output.retain_grad()
            self.inputs[name], self.outputs[name] = args[0].detach(), output

        return hook

    def route(self, name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            self.routes[name] = args[1]  # [tokens, chosen experts]

        return hook

    def counted(self, name: str, mask: Tensor) -> Tensor:
        """Return which rows of a site's input are text; an expert has its own tokens only."""
        flat = mask.reshape(-1)
        for path, chosen in self.routes.items():
            if name.startswith(path + "."):
                expert = int(name.removeprefix(path + ".").partition(".")[0])
                _, token = torch.where(expert == chosen.T)
                return flat[token]
        return flat


def naive(model: PreTrainedModel, read: Tokens) -> dict[str, Expected]:
    """Return the statistics of every site from one pass of the whole model."""
    model = copy.deepcopy(model)
    unpack(model)
    watched = Watched(model)
    targets = wanted(model, read)
    draws = []
    with torch.enable_grad():
        logits = whole(model.requires_grad_(), read)
        for start in range(0, len(logits), BATCH):  # as the walk does, batch by batch
            counted = logits[start : start + BATCH][targets[start : start + BATCH] != -100]
            draw = drawn(counted.detach(), torch.Generator().manual_seed(start))
            draws.append((counted * draw).sum())
        sum(draws).backward()
    predicted = [(targets[half::2] != -100).sum() for half in (0, 1)]
    found = {}
    for site in find(model):
        if site.block >= 0:
            found[site.name] = moments(
                watched, site.name, mask_of(model, site.role, read), predicted
            )
    return found


def mask_of(model: PreTrainedModel, role: str, read: Tokens) -> Tensor:
    """Return what is text in a site's input: cross-attention reads keys and values elsewhere."""
    if not model.config.is_encoder_decoder:
        return read.mask
    of_encoder = role.startswith("encoder_") or role in ("decoder_cross_k", "decoder_cross_v")
    return read.mask[:, : LENGTH // 2] if of_encoder else read.mask[:, LENGTH // 2 :]


def moments(watched: Watched, name: str, mask: Tensor, predicted: list[Tensor]) -> Expected:
    if name not in watched.inputs:
        return Statistics(0), []
    counted = watched.counted(name, mask)
    x = watched.inputs[name].flatten(0, -2)[counted].double()
    g = watched.outputs[name].grad.flatten(0, -2)[counted].double()
    if len(x) == 0:
        return Statistics(0), []
    odd = torch.arange(mask.shape[0])[:, None].expand_as(mask) % 2 == 1
    odd = watched.counted(name, odd)[counted]
    known = Statistics(
        len(x),
        input_mean=x.mean(0),
        input_moment=x.T @ x / len(x),
        gradient_moment=g.T @ g / sum(predicted),
        weighted_moment=felt(x, g),
    )
    halves = [
        Statistics(
            int(half.sum()),
            input_mean=x[half].mean(0),
            input_moment=x[half].T @ x[half] / half.sum(),
            gradient_moment=g[half].T @ g[half] / count,
            weighted_moment=felt(x[half], g[half]),
        )
        for half, count in zip((~odd, odd), predicted, strict=True)
    ]
    return known, halves


def felt(x: Tensor, g: Tensor) -> Tensor:
    """Return E[‖g‖² x xᵀ] / E[‖g‖²]."""
    weights = g.square().sum(1)
    return (weights[:, None] * x).T @ x / weights.sum()


def collected(walk: BlockWalk, folder: Path) -> dict[str, Statistics]:
    collect(walk, folder, find(walk.model), lambda *_: None)
    found: dict[str, Statistics] = {}
    for stack in walk.architecture.stacks:
        for place in walk.places(stack):
            found |= block_statistics(folder, place)
    return found


def off(one: Tensor, other: Tensor) -> float:
    """Return the difference as a part of the second."""
    return float((one.double() - other).norm() / other.norm().clamp_min(1e-12))


@PADDED
@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_are_those_of_plain_hooks(family: str, padded: bool, tmp_path: Path) -> None:
    model, read = model_of(family), text(padded)
    expected = naive(model, read)
    found = collected(walk_of(model, read), tmp_path)
    assert found.keys() == expected.keys()
    for name, (one, halves) in expected.items():
        assert found[name].tokens == one.tokens, name
        if one.tokens == 0:
            continue
        assert off(found[name].input_mean, one.input_mean) < 1e-4, name
        assert off(found[name].input_moment, one.input_moment) < 1e-4, name
        assert off(found[name].gradient_moment, one.gradient_moment) < 1e-3, name
        assert off(found[name].weighted_moment, one.weighted_moment) < 1e-3, name
        if not all(half.tokens and half.gradient_moment.any() for half in halves):
            assert found[name].even is None and found[name].odd() is None, name
            continue
        for part, half in zip((found[name].even, found[name].odd()), halves, strict=True):
            assert off(part.gradient_moment, half.gradient_moment) < 1e-3, name
            assert off(part.weighted_moment, half.weighted_moment) < 1e-3, name
            assert part.tokens == half.tokens, name
            assert off(part.input_moment, half.input_moment) < 1e-3, name
            assert off(part.input_mean, half.input_mean) < 1e-3, name


def test_experts_count_their_own_tokens(tmp_path: Path) -> None:
    model, read = model_of("mixtral"), text(padded=True)
    found = collected(walk_of(model, read), tmp_path)
    counts = [found[f"model.layers.0.mlp.experts.{expert}.gate_up"].tokens for expert in range(4)]
    assert sum(counts) == 2 * read.counted()
    assert len(set(counts)) > 1


def test_an_expert_that_only_padding_reached_counts_nothing(tmp_path: Path) -> None:
    """Text lies in dimension 1 and padding in dimension 0, which only expert 2 is for."""
    model, read = model_of("mixtral"), text(padded=True)
    first = model.model.layers[0]
    with torch.no_grad():
        embedded, router = model.model.embed_tokens.weight, first.mlp.gate.weight
        embedded[:, 0], embedded[:, 1] = 0.0, 30.0
        embedded[0, 0], embedded[0, 1] = 30.0, 0.0
        first.self_attn.o_proj.weight.zero_()
        first.post_attention_layernorm.weight.fill_(1.0)
        router.zero_()
        router[[0, 3], 1] = 10.0
        router[2, 0], router[2, 1] = 10.0, -10.0
    ids = torch.where(read.mask, read.ids, 0)
    found = collected(walk_of(model, Tokens(ids, read.mask)), tmp_path)
    experts = [f"model.layers.0.mlp.experts.{expert}.gate_up" for expert in range(4)]
    counted = read.counted()
    assert [found[name].tokens for name in experts] == [counted, 0, 0, counted]


def test_sites_with_one_input_share_its_moment(tmp_path: Path) -> None:
    found = collected(walk_of(model_of("bart"), text(padded=False)), tmp_path)
    decoder, encoder = "model.decoder.layers.0.", "model.encoder.layers.0."
    assert (
        found[f"{decoder}encoder_attn.k_proj"].input_moment.data_ptr()
        == found[f"{decoder}encoder_attn.v_proj"].input_moment.data_ptr()
        != found[f"{decoder}encoder_attn.q_proj"].input_moment.data_ptr()
    )
    q, k, v = (found[f"{encoder}self_attn.{one}_proj"].input_moment.data_ptr() for one in "qkv")
    assert q == k == v


# interruption


class Killed(BaseException):
    """The process is gone: nothing of ours gets to see this."""


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_sweeps_interrupted_after_any_block_give_the_same_files(
    family: str, tmp_path: Path
) -> None:
    model, read = model_of(family), text(padded=False)
    calls: list[int] = []
    sites = find(model)
    collect(walk_of(model, read), tmp_path / "whole", sites, lambda done, *_: calls.append(done))
    expected = content(tmp_path / "whole")
    assert all(name.endswith((".safetensors", ".json")) for name in expected), "no work files"
    for moment in range(1, len(calls) + 1):
        folder = tmp_path / str(moment)

        def stop(done: int, *_: object, moment: int = moment) -> None:
            if done == moment:
                raise Killed

        with pytest.raises(Killed):
            collect(walk_of(model, read), folder, sites, stop)
        collect(walk_of(model, read), folder, sites, lambda *_: None)
        assert content(folder) == expected, moment


@pytest.mark.parametrize(
    ("family", "after"),
    [("llama", False), ("llama", True), ("t5", False)],
    ids=["llama before", "llama after", "t5 before"],
)
def test_sweeps_killed_at_any_change_of_a_file_give_the_same_files(
    family: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that gets its name, and one that goes, are the only steps between two states."""
    model, read = model_of(family), text(padded=False)
    sites, steps, limit = find(model), 0, 10**9

    def counting(step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps >= limit and not after:
                raise Killed
            result = step(*args, **kwargs)
            if steps >= limit:
                raise Killed
            return result

        return counted

    monkeypatch.setattr(os, "replace", counting(os.replace))
    monkeypatch.setattr(Path, "unlink", counting(Path.unlink))
    collect(walk_of(model, read, 3), tmp_path / "whole", sites, lambda *_: None)
    expected, total = content(tmp_path / "whole"), steps
    for moment in range(1, total + 1):
        folder = tmp_path / str(moment)
        steps, limit = 0, moment
        with pytest.raises(Killed):
            collect(walk_of(model, read, 3), folder, sites, lambda *_: None)
        limit = 10**9
        collect(walk_of(model, read, 3), folder, sites, lambda *_: None)
        assert content(folder) == expected, moment
