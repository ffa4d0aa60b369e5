"""What blocks are worth in closed form, which of them stay, and what config.json says then."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.job.order import ordered
from spectrim.model import sources
from spectrim.model.architectures import Place
from spectrim.model.weights import quiet
from spectrim.recipe.options import validate
from spectrim.stages._importance import importance, loss_in_order, losses_without
from spectrim.stages.drop_blocks import Options, shortened, stitched
from tiny_folders import change_config, change_tensors
from tiny_models import logits
from tiny_runs import family_folder, load, recipe, write_text
from tiny_walks import model_of, text, walk_of, wanted, whole

FREE = {"protect_first": 0, "protect_last": 0}


def options(**values: Any) -> Options:
    return validate(Options, values, "stage drop_blocks")


def job_of(folder: Path, family: str = "llama") -> Job:
    source = folder / "source"
    if not source.exists():
        family_folder(source, family)
    asked = recipe(source, write_text(folder / "text.txt"))
    cache = folder / "cache"
    with quiet():
        found = sources.resolve(str(source), cache)
        return open_job(asked, found, cache, lambda done, total, what: None)


def silent(done: int, total: int, what: str) -> None: ...


# which blocks


@pytest.mark.parametrize(
    ("written", "order"),
    [
        ("0-14, 14-20, 25-31", [*range(15), *range(14, 21), *range(25, 32)]),
        (["0 - 2", 5, "3"], [0, 1, 2, 5, 3]),
        (7, [7]),
    ],
)
def test_ranges_have_both_ends(written: object, order: list[int]) -> None:
    layers = options(layers=written).layers
    assert stitched(layers, 32) == tuple(order)
    assert options(layers=list(layers)).layers == layers


@pytest.mark.parametrize("written", ["3-1", "a", "1-", "-1", "0..3", [1.5], "1,,2", True])
def test_what_is_no_range_says_how_to_write_one(written: object) -> None:
    with pytest.raises(SpectrimError, match=r"is no range of blocks; write .*0-14") as told:
        options(layers=written)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("values", [{}, {"drop": 1, "layers": "0"}, {"layers": []}])
def test_either_a_number_or_the_blocks(values: dict[str, Any]) -> None:
    with pytest.raises(SpectrimError, match="either drop, .* or layers, .*; give one of them"):
        options(**values)


def test_a_block_that_is_not_there() -> None:
    with pytest.raises(SpectrimError, match="names block 32; this model has 32, 0 to 31"):
        stitched(("0-2", "32"), 32)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"drop": 1}, r"cannot drop 1 of 3 blocks: the first 4 and the last 2 stay, .* leaves 0;"),
        ({"drop": 2, "protect_first": 1, "protect_last": 1}, r"which leaves 1; drop or protect"),
        ({"drop": 3, **FREE}, "cannot drop all 3 blocks; drop fewer"),
    ],
)
def test_more_than_may_go(tmp_path: Path, values: dict[str, Any], told: str) -> None:
    job = job_of(tmp_path)
    (stack,) = job.architecture.stacks
    with pytest.raises(SpectrimError, match=told):
        shortened(ordered(job, stack, (0, 1, 2)), options(**values))


# what they are worth


@pytest.fixture(scope="module")
def with_identity(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A llama whose block 1 adds nothing to what enters it."""
    folder = tmp_path_factory.mktemp("identity")
    family_folder(folder / "source", "llama")

    def silence(held: dict[str, torch.Tensor]) -> None:
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            held[f"model.layers.1.{part}.weight"].zero_()

    change_tensors(folder / "source", silence)
    return job_of(folder)


@pytest.mark.parametrize("kind", ["perplexity", "angular", "taylor"])
def test_a_block_that_changes_nothing_is_worth_nothing_and_goes_first(
    with_identity: Job, kind: str
) -> None:
    job = with_identity
    (stack,) = job.architecture.stacks
    model = ordered(job, stack, (0, 1, 2))
    found = importance(model, kind, [0, 1, 2])
    assert found[1] == pytest.approx(0, abs=1e-7)
    assert abs(found[0]) > 1e-3
    made, rounds = shortened(model, options(drop=2, importance=kind, **FREE))
    if kind != "perplexity":  # a random model may gain by losing a block
        assert rounds[0]["removed"] == 1
    first, second = (one["removed"] for one in rounds)
    assert first == min(found, key=found.get)
    assert {int(at) for at in rounds[1]["importance"]} == {0, 1, 2} - {first}
    assert made.order == tuple({0, 1, 2} - {first, second})


def test_measured_once_it_keeps_the_order_of_the_first_round(with_identity: Job) -> None:
    (stack,) = with_identity.architecture.stacks
    model = ordered(with_identity, stack, (0, 1, 2))
    once = options(drop=2, importance="angular", iterative=False, **FREE)
    _, rounds = shortened(model, once)
    first = rounds[0]["importance"]
    assert [str(one["removed"]) for one in rounds] == sorted(first, key=first.get)[:2]
    assert rounds[1]["importance"] == {k: v for k, v in first.items() if k != "1"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_taylor_and_magnitude_are_what_the_whole_model_says(tmp_path: Path, family: str) -> None:
    job = job_of(tmp_path, family)
    (stack,) = job.architecture.stacks
    ordinary = ordered(job, stack, (0, 1, 2))
    found = {kind: importance(ordinary, kind, [0, 2]) for kind in ("taylor", "magnitude")}
    model = load(tmp_path / "source").float()
    ids = job.splits.calibration.ids
    loss = functional.cross_entropy(
        model(ids, use_cache=False).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    )
    inside = {
        name: one
        for name, one in model.named_parameters()
        if name.startswith(stack.path) and one.dim() > 1 and not name.endswith("mlp.gate.weight")
    }
    gradients = torch.autograd.grad(loss, inside.values())
    products = {
        name: (one * slope).detach().abs().sum()
        for (name, one), slope in zip(inside.items(), gradients, strict=True)
    }
    for index in (0, 2):
        names = [name for name in inside if name.startswith(Place(stack, index).prefix)]
        taylor = sum(float(products[name]) for name in names)
        size = sum(float(inside[name].detach().abs().sum()) for name in names)
        assert found["taylor"][index] == pytest.approx(taylor, rel=1e-3)
        assert found["magnitude"][index] == pytest.approx(size, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "place"), [("llama", 0), ("gemma2", 0), ("bart", 0), ("bart", 1), ("t5", 1)]
)
def test_the_loss_without_a_block_is_that_of_the_model_without_it(family: str, place: int) -> None:
    model, read = model_of(family), text(padded=True)
    walk = walk_of(model, read)
    stack = walk.architecture.stacks[place]
    found = losses_without(walk, stack, [1], silent)
    for trial in (None, 1):
        other = copy.deepcopy(model)
        blocks: Any = other.get_submodule(stack.path)
        if trial is not None:
            types = getattr(other.config, "layer_types", None)
            other.config.layer_types = types and [types[0], types[2]]
            setattr(other.config, stack.count, len(blocks) - 1)
            del blocks[trial]
        expected = functional.cross_entropy(
            whole(other, read).flatten(0, 1), wanted(model, read).flatten(), ignore_index=-100
        )
        assert found[trial] == pytest.approx(float(expected), rel=1e-5)
    assert found[None] != pytest.approx(found[1], rel=1e-4)


@torch.no_grad()
def test_a_reordered_walk_is_the_reordered_model(tmp_path: Path) -> None:
    job = job_of(tmp_path, "gemma2")
    (stack,) = job.architecture.stacks
    order = (2, 0, 1, 1)
    model = load(tmp_path / "source")
    blocks: Any = model.get_submodule(stack.path)
    model.set_submodule(stack.path, nn.ModuleList(blocks[at] for at in order))
    model.config.num_hidden_layers = 4
    model.config.layer_types = [model.config.layer_types[at] for at in order]
    ids = job.splits.search.ids
    loss = functional.cross_entropy(logits(model, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    made = ordered(job, stack, order)
    assert loss_in_order(made) == pytest.approx(float(loss), rel=1e-5)
    assert job.model.config.num_hidden_layers == 3, "the job's own model stays as it was"
    assert len(job.model.get_submodule(stack.path)) == 3


# what the config says


@pytest.mark.parametrize(
    ("family", "place", "order", "expected"),
    [
        ("llama", 0, (0, 2), {"num_hidden_layers": 2}),
        ("gpt2", 0, (0, 2), {"n_layer": 2}),
        ("gemma2", 0, (1, 1, 2), {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        }),
        ("qwen3_moe", 0, (0, 2, 1, 1), {
            "num_hidden_layers": 4, "mlp_only_layers": [2, 3], "decoder_sparse_step": 1,
        }),
        ("bart", 0, (1,), {"encoder_layers": 1, "decoder_layers": 3, "num_hidden_layers": 1}),
        ("bart", 1, (0, 1), {"encoder_layers": 2, "decoder_layers": 2, "num_hidden_layers": 2}),
        ("t5", 1, (0,), {"num_layers": 3, "num_decoder_layers": 1}),
        ("t5", 0, (0, 2), {"num_layers": 2, "num_decoder_layers": 2}),
    ],
)  # fmt: skip
def test_the_config_follows(
    tmp_path: Path, family: str, place: int, order: tuple[int, ...], expected: dict[str, Any]
) -> None:
    job = job_of(tmp_path, family)
    if family == "bart":  # as older versions of transformers wrote it
        change_config(job.source.folder, num_hidden_layers=2)
    made = ordered(job, job.architecture.stacks[place], order)
    said = {k: v for k, v in made.config.items() if k != "layer_types" or family == "gemma2"}
    assert said == expected


def test_a_family_that_cannot_have_its_blocks_so(tmp_path: Path) -> None:
    job = job_of(tmp_path, "t5")
    encoder, decoder = job.architecture.stacks
    for order in ((1, 2), (0, 1, 0)):
        with pytest.raises(SpectrimError, match="position bias .* begin with 0 and name it once"):
            ordered(job, encoder, order)
    with pytest.raises(SpectrimError, match="a decoder of 4 blocks needs an encoder of as many"):
        ordered(job, decoder, (0, 1, 1, 1))


def test_attention_scaled_by_the_number_of_the_block(tmp_path: Path) -> None:
    family_folder(tmp_path / "source", "gpt2")
    change_config(tmp_path / "source", scale_attn_by_inverse_layer_idx=True)
    job = job_of(tmp_path, "gpt2")
    (stack,) = job.architecture.stacks
    assert ordered(job, stack, (0, 1)).order == (0, 1)
    with pytest.raises(SpectrimError, match="scales attention by the number of the block"):
        ordered(job, stack, (0, 2))
