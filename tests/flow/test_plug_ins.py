"""Every method with every format and every allocator: the budget is kept, the damage as said."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from transformers import PreTrainedModel

from spectrim.allocators import allocators
from spectrim.architectures import of
from spectrim.formats import FactoredLinear, formats
from spectrim.methods import Damping, damped, methods
from spectrim.plan import Decision
from spectrim.sites import weight
from spectrim.statistics import Statistics, load_block
from tiny_models import logits, tokens
from tiny_runs import Made, from_pretrained, kept, load, make, plan_of, recipe, shrink, stored

PLUG_INS = list(itertools.product(methods.names(), formats.names(), allocators.names()))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family without experts, its cache shared by all plug-ins."""
    return make(request.param, tmp_path_factory.mktemp("plug-ins"))


@pytest.mark.parametrize(("method", "format", "allocator"), PLUG_INS)
@pytest.mark.parametrize("keep", ["45% of linear", "80% of bytes"])
def test_every_plug_in_keeps_to_the_budget(
    plain: Made, method: str, format: str, allocator: str, keep: str
) -> None:
    options = {"method": method, "format": format, "allocator": allocator, "refine": "off"}
    small = shrink(recipe(plain.source, plain.text, keep, **options), plain.folder / "other")
    plan = plan_of(small)
    dense = sum(one.dense for one in plan.decisions)
    assert {one.format for one in plan.decisions} <= {format, "dense"}
    assert any(one.format == format for one in plan.decisions)
    if keep.endswith("linear"):
        assert sum(one.stored for one in plan.decisions) <= 0.45 * dense
    else:
        sizes = [sum(t.nbytes for t in stored(at).values()) for at in (small, plain.source)]
        assert sizes[0] <= 0.8 * sizes[1]
    model = from_pretrained(plain, small)
    assert logits(model, tokens()).isfinite().all()
    for one in plan.decisions:
        if one.format != "dense":
            damage = written_out(plain, model.get_submodule(one.site), one)
            assert damage == pytest.approx(one.predicted_loss, rel=1e-2), one.site


@functools.cache
def known(made: Made) -> tuple[PreTrainedModel, dict[str, Statistics]]:
    """Return the dense model and the statistics of all its sites."""
    model = load(made.source)
    (folder,) = kept(made.folder / "cache", "statistics")
    found: dict[str, Statistics] = {}
    for stack in of(model.config).stacks:
        for index in range(len(model.get_submodule(stack.path))):
            found |= load_block(folder, stack, index)
    return model, found


def written_out(made: Made, module: FactoredLinear, decision: Decision) -> float:
    """Return ½ tr(Δᵀ G Δ A) of what is stored, in the plainest way."""
    model, statistics = known(made)
    damping, found = Damping(), statistics[decision.site]
    error = (weight(model.get_submodule(decision.site)) - module.dense()).detach().double()
    inputs = found.input_moment.double()
    if decision.bias:  # it makes up for the mean
        inputs = inputs - torch.outer(found.input_mean.double(), found.input_mean.double())
    middle = error.T @ damped(found.gradient_moment, damping.gradient) @ error
    return float(0.5 * torch.trace(middle @ damped(inputs, damping.input)))
