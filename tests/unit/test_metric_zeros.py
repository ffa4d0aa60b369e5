"""The share of exact zeros: what is counted, and that it is never called a saving."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from spectrim.formats import from_factors
from spectrim.metrics import Evaluation, Pair
from spectrim.metrics.zeros import measure, zeros
from spectrim.model.sites import find, replace
from spectrim.report.table import lines
from tiny_models import build


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_zeros_are_counted(family: str) -> None:
    model = build(family)
    inside = [site for site in find(model) if site.block >= 0]
    numbers = sum(site.out_features * site.in_features for site in inside)
    assert zeros(model) == 0.0
    embedding: Any = model.get_input_embeddings()
    embedding.weight.zero_()  # outside the blocks
    assert zeros(model) == 0.0
    lost = 0
    for name, tensor in model.named_parameters():
        if name.endswith(("o_proj.weight", "c_proj.weight", "experts.down_proj")):
            tensor[..., :5] = 0.0
            lost += tensor[..., :5].numel()
    assert zeros(model) == pytest.approx(lost / numbers)


@torch.no_grad()
def test_zeros_of_factors_count_among_what_they_store() -> None:
    torch.manual_seed(0)
    model = build("llama")
    site = find(model)[1]
    left, right = torch.randn(site.out_features, 4), torch.randn(4, site.in_features)
    left[6:] = 0.0
    replace(model, site.name, from_factors("low_rank", left, right, None, torch.float32))
    dense = sum(one.out_features * one.in_features for one in find(model)[2:] if one.block >= 0)
    stored = 4 * (site.out_features + site.in_features)
    assert zeros(model) == pytest.approx(4 * (site.out_features - 6) / (dense + stored))


@torch.no_grad()
def test_the_score_says_that_zeros_save_nothing_and_keeps_quiet_without_any() -> None:
    models = {"dense": build("llama"), "small": build("llama"), "int4": build("llama")}
    chosen = Evaluation(baselines={"int4": 0})
    for tensor in models["int4"].parameters():
        tensor.zero_()
    assert measure(Pair(models, {}, chosen)) == {}
    models["small"].model.layers[0].mlp.down_proj.weight.zero_()
    found = measure(Pair(models, {}, chosen))
    assert list(found) == ["dense", "small"]
    assert found["dense"][0].value == 0.0 < found["small"][0].value
    assert "save nothing" in found["small"][0].settings["stored"]


def test_the_report_says_that_zeros_are_stored() -> None:
    share = {"value": 0.5, "unit": "share", "better": "none", "n": 1, "interval": None}
    scores = {"rows": [{"label": "dense"}, {"label": "small", "zeros": {**share, "settings": {}}}]}
    (line,) = (one for one in lines(scores) if "zeros" in one.name)
    assert line.group == "Size" and "stored all the same" in line.name
