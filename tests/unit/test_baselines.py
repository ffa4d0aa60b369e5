"""Int8 and int4 copies of a model: closed forms, bytes by hand, and nothing else touched."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2LMHeadModel

from spectrim.errors import UnavailableError
from spectrim.formats import from_factors
from spectrim.metrics import Evaluation, Pair
from spectrim.metrics.size import bytes_on_disk, measure
from spectrim.model import sites
from spectrim.rounding import baselines
from tiny_models import build, logits, tokens

HIDDEN, INNER, BLOCKS, KEYS = 48, 80, 3, 24
MAPS = [(HIDDEN, HIDDEN)] * 2 + [(KEYS, HIDDEN)] * 2 + [(INNER, HIDDEN)] * 2 + [(HIDDEN, INNER)]


def test_int8_is_off_by_at_most_half_a_step_of_its_channel() -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 40) * torch.logspace(-3, 2, 64)[:, None]
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    error = (baselines.rounded(weight, 8) - weight).abs()
    assert bool((error <= step / 2 * 1.005).all())  # the step itself is rounded to bf16
    assert float(error.max() / step.max()) > 0.3
    assert len(baselines.rounded(weight, 8)[0].unique()) <= 255


def test_int4_is_off_by_at_most_half_a_step_of_its_group() -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 64)
    groups = weight.reshape(16, 2, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    error = (baselines.rounded(weight, 4) - weight).abs().reshape(16, 2, 32).amax(-1)
    assert bool((error <= step * 0.55).all())  # scales and offsets are rounded to bf16
    found = baselines.rounded(weight, 4).reshape(32, 32)
    assert max(len(group.unique()) for group in found) <= 16


@pytest.mark.parametrize("offset", [-8.0, 0.0, 3.0])
def test_weights_on_a_four_bit_grid_pass_int4_exactly(offset: float) -> None:
    torch.manual_seed(0)
    whole = torch.randint(16, (20, 70)).float()
    whole[:, ::32], whole[:, 1::32] = 0.0, 15.0  # both ends occur, as where such a grid comes from
    weight = 2.0**-5 * (whole + offset)
    assert torch.equal(baselines.rounded(weight, 4), weight)


def test_zeros_and_single_values_stay() -> None:
    for value in (0.0, 0.5):
        weight = torch.full((3, 40), value)
        assert torch.equal(baselines.rounded(weight, 4), weight)
    assert torch.equal(baselines.rounded(torch.zeros(3, 40), 8), torch.zeros(3, 40))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "t5", "bart"])
def test_only_the_maps_of_the_blocks_change_and_only_in_the_copy(family: str) -> None:
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copied = baselines.of(model)
    assert list(copied) == ["int8", "int4"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    inside = [site.name for site in sites.find(model) if site.block >= 0]
    for name, tensor in copied["int4"].state_dict().items():
        owner = name.rsplit(".", 1)[0]
        # packed experts: the tensor's name has no number
        mapped = f"{owner}.weight" == name and owner in inside or ".experts." in name
        assert torch.equal(tensor, before[name]) != mapped, name
    plain, eight, four = (logits(one, tokens()) for one in (model, *copied.values()))
    assert 0 < (eight - plain).abs().mean() < (four - plain).abs().mean()


@pytest.mark.parametrize("bits", [4, 8])
def test_every_map_holds_its_rounded_values_whatever_holds_it(bits: baselines.Bits) -> None:
    for family in ("gpt2", "mixtral"):
        model = build(family)
        copied = baselines.weight_only(model, bits)
        pairs = zip(baselines._matrices(model), baselines._matrices(copied), strict=True)
        for dense, found in pairs:
            assert torch.equal(found, baselines.rounded(dense.detach(), bits))
    assert isinstance(build("gpt2"), GPT2LMHeadModel)


def test_bytes_by_hand() -> None:
    model = build("llama", tie=True).to(torch.bfloat16)
    numbers = sum(one.numel() for one in model.parameters())
    maps = BLOCKS * sum(rows * width for rows, width in MAPS)
    rest = 2 * (numbers - maps)
    eight = BLOCKS * sum(rows * width + 2 * rows for rows, width in MAPS)
    groups = {48: 2, 80: 3}  # the last of either is a short one
    four = BLOCKS * sum(rows * (width // 2 + 4 * groups[width]) for rows, width in MAPS)
    found = {label: baselines.stored_bytes(one) for label, one in baselines.of(model).items()}
    assert found == {"int8": rest + eight, "int4": rest + four}


def test_what_is_left_in_16_bits_counts_as_in_a_file(tmp_path: object) -> None:
    model = build("gpt2").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    maps = sum(matrix.numel() for matrix in baselines._matrices(model))
    rows = sum(len(matrix) for matrix in baselines._matrices(model))
    expected = bytes_on_disk(tmp_path) - 2 * maps + maps + 2 * rows  # type: ignore[arg-type]
    assert baselines.stored_bytes(baselines.weight_only(model, 8)) == expected


def test_the_size_of_a_baseline_is_its_packed_size() -> None:
    model = build("llama")
    four = baselines.weight_only(model, 4)
    pair = Pair(
        {"dense": model, "int4": four},
        {},
        Evaluation(baselines={"int4": baselines.stored_bytes(four)}),
    )
    scores = {score.name: score.value for score in measure(pair)["int4"]}
    assert scores["bytes_of_weights"] == baselines.stored_bytes(four)
    assert scores["numbers"] == sum(one.numel() for one in model.parameters())
    assert not {"bytes_in_memory", "linear_share", "numbers_share"} & scores.keys()


def test_a_model_that_is_not_dense_has_no_baselines() -> None:
    model = build("llama")
    factors = from_factors(
        "low_rank", torch.randn(HIDDEN, 3), torch.randn(3, HIDDEN), None, torch.float32
    )
    sites.replace(model, "model.layers.1.self_attn.q_proj", factors)
    with pytest.raises(UnavailableError, match="q_proj' is a LowRank; the int8 and int4 baselines"):
        baselines.of(model)
