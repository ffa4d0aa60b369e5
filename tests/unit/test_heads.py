"""Heads turned and narrowed: closed forms, and what a model makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from spectrim.curve import Group
from spectrim.cutting.groups import groups
from spectrim.formats import make_format
from spectrim.methods import Decomposition, methods
from spectrim.model.architectures import architecture_of
from spectrim.model.fused import split_fused
from spectrim.model.sites import bias, find, module, replace, weight
from spectrim.recipe.options import Factorize
from spectrim.walk.moments import Damping
from spectrim.walk.statistics import Statistics
from tiny_models import FAMILIES, build, logits, tokens, unpack

NONE = Damping(0.0, 0.0)
HIDDEN, DIM = 10, 6
PAIR = ("value_output", "query_key")


def drawn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def moment(size: int, seed: int) -> Tensor:
    rows = drawn(4 * size, size, seed=seed) * torch.logspace(0, -1, size)
    return rows.T @ rows / len(rows)


def root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def tails(matrix: Tensor) -> Tensor:
    """Return ½ Σ σ² behind each cut of the SVD of a matrix, from none to ``DIM`` values kept."""
    squares = 0.5 * torch.linalg.svdvals(matrix).square()
    return torch.stack([squares[rank:].sum() for rank in range(DIM + 1)])


def test_a_head_of_values_is_cut_as_the_svd_of_the_product_where_tokens_see_themselves() -> None:
    """Eckart–Young for G^½ W_o W_v A^½: c = W_v x."""
    v, o = drawn(DIM, HIDDEN, seed=0), drawn(HIDDEN, DIM, seed=1)
    inputs, gradients = moment(HIDDEN, 2), moment(HIDDEN, 3)
    known = {
        "v": Statistics(9, None, inputs, moment(DIM, 4)),
        "o": Statistics(9, None, v @ inputs @ v.T, gradients),
    }
    found = methods.get("value_output")({"v": v, "o": o}, known, head_dim=DIM, damping=NONE)
    best = tails(root(gradients) @ o @ v @ root(inputs))
    torch.testing.assert_close(found.losses.double(), best, rtol=1e-4, atol=1e-6 * best[0])
    for rank in range(1, DIM):
        parts = [
            make_format(form, (*shape, rank), _of(found, role), None, torch.float64)
            for role, form, shape in (("o", "picked_inputs", (HIDDEN, DIM)),
                                      ("v", "padded_outputs", (DIM, HIDDEN)))
        ]  # fmt: skip
        missed = o @ v - (parts[0].dense() @ parts[1].dense()).detach()
        cost = 0.5 * torch.trace(missed.T @ gradients @ missed @ inputs)
        assert float(cost) == pytest.approx(float(best[rank]), rel=1e-3)


def test_a_head_of_queries_is_cut_as_the_svd_of_both_roots() -> None:
    """Eckart–Young for G^½ C^½, C = E[q qᵀ] with the bias of q in it."""
    rows, q, shift = drawn(200, HIDDEN, seed=0) + 1, drawn(DIM, HIDDEN, seed=1), drawn(DIM, seed=2)
    gradients, inputs = moment(DIM, 3), rows.T @ rows / len(rows)
    weight = {"k": drawn(DIM, HIDDEN, seed=4), "q": q}
    known = {
        "k": Statistics(9, None, inputs, moment(DIM, 5)),
        "q": Statistics(9, rows.mean(0), inputs, gradients),
    }
    asked = {"head_dim": DIM, "damping": NONE}
    found = methods.get("query_key")(weight, known, biases={"k": None, "q": shift}, **asked)
    made = rows @ q.T + shift
    best = tails(root(gradients) @ root(made.T @ made / len(made)))
    torch.testing.assert_close(found.losses.double(), best, rtol=1e-4, atol=1e-6 * best[0])
    without = methods.get("query_key")(weight, known, biases={"k": None, "q": None}, **asked)
    assert not torch.allclose(without.losses, found.losses, rtol=1e-2)


@pytest.mark.parametrize("method", PAIR)
@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_width_nothing_changes(method: str, family: str) -> None:
    """Turned heads, and turned biases, give the logits that the model gave."""
    model = build(family)
    split_fused(model)
    unpack(model)
    before = logits(model.double(), tokens())
    found = grouped(model, method)
    free = family in ("gpt2", "opt", "opt_projected", "bart", "t5", "t5_gated", "falcon_alibi")
    assert bool(found) == (free or method == "value_output")
    for group in found:
        narrow(model, group, 1.0)
    torch.testing.assert_close(logits(model, tokens()), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["llama_biased", "falcon_new", "gpt2", "bart"])
def test_values_that_no_output_reads_are_left_out_for_nothing(family: str) -> None:
    """A third of every head is left where every o reads no more of each of its heads."""
    model = build(family)
    split_fused(model)
    found = grouped(model.double(), "value_output")
    for value, out in (group.sites for group in found):
        columns, times = weight(module(model, out)).data, out.in_features // value.out_features
        columns.copy_(poorer(columns.T.unflatten(0, (-1, out.head_dim)), times).flatten(0, 1).T)
    before = logits(model, tokens())
    for group in found:
        narrow(model, group, 1 / 3)
    sites = [site for group in found for site in group.sites]
    assert all(type(module(model, site)).__name__ != "Linear" for site in sites)
    torch.testing.assert_close(logits(model, tokens()), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bart", "t5"])
def test_queries_that_no_key_answers_are_left_out_for_nothing(family: str) -> None:
    """A third of every head is left where the keys of each head span no more."""
    model = build(family)
    split_fused(model)
    found = grouped(model.double(), "query_key")
    for key, _ in (group.sites for group in found):
        rows = weight(module(model, key)).data
        rows.copy_(poorer(rows.unflatten(0, (-1, key.head_dim)), 1).flatten(0, 1))
    before = logits(model, tokens())
    for group in found:
        key = group.site
        keys = weight(module(model, key)).detach().unflatten(0, (-1, key.head_dim))
        flow = torch.block_diag(*(keys @ keys.mT))  # the loss moves a query only along keys
        narrow(model, group, 1 / 3, flow)
    torch.testing.assert_close(logits(model, tokens()), before, rtol=1e-3, atol=1e-3)


def poorer(heads: Tensor, times: int) -> Tensor:
    """Return [heads, dim, rest] in a third of the dimensions, the same for ``times`` in a row."""
    dim = heads.shape[1]
    span = drawn(len(heads) // times, dim, dim // 3, seed=7).repeat_interleave(times, 0)
    return span @ torch.linalg.pinv(span) @ heads


def grouped(model: PreTrainedModel, method: str) -> list[Group]:
    """Return the groups of a method in all blocks."""
    sites = [site for site in find(model) if site.block >= 0]
    starts = dict.fromkeys(
        f"{stack.path}.{site.block}."
        for stack in architecture_of(model.config).stacks
        for site in sites
        if site.name.startswith(f"{stack.path}.")
    )
    blocks = [[site for site in sites if site.name.startswith(start)] for start in starts]
    return [group for block in blocks for group in groups(method, block, Factorize())]


@torch.no_grad()
def narrow(
    model: PreTrainedModel,
    group: Group,
    part: float,
    flow: Tensor | None = None,
) -> None:
    """Put what a method leaves of sites into their places, for made-up statistics."""
    method, sites = group.method, group.sites
    roles = dict(zip(group.roles, sites, strict=True))
    parts = {role: module(model, site) for role, site in roles.items()}
    known = {
        role: Statistics(
            9, torch.ones(site.in_features), moment(site.in_features, 1) + 1,
            moment(site.out_features, 2) if flow is None or role.endswith("k") else flow,
        )
        for role, site in roles.items()
    }  # fmt: skip
    biases = {r: bias(one) for r, one in parts.items()}
    needs = {"head_dim": sites[0].head_dim, "biases": biases, "unseen": None}
    found = methods.get(method)(
        {role: weight(one) for role, one in parts.items()}, known, damping=NONE,
        **{need: needs[need] for need in methods.constant(method, "NEEDS")},
    )  # fmt: skip
    for role, site in roles.items():
        form = methods.constant(method, "FORMAT")[role]
        full = site.in_features if form == "picked_inputs" else site.out_features
        shape = (site.out_features, site.in_features, round(part * full))
        made = make_format(form, shape, _of(found, role), bias(parts[role]), torch.float64)
        replace(model, site.name, made)


def _of(found: Decomposition, role: str) -> dict[str, Tensor]:
    start = f"{role}."
    return {k.removeprefix(start): p for k, p in found.pieces.items() if k.startswith(start)}


@pytest.mark.parametrize(
    ("method", "lacking", "message"),
    [
        ("value_output", {"input_moment": None}, "input and gradient moments of the output map"),
        ("query_key", {"input_moment": None}, "query_key needs the input moment of the queries"),
        ("query_key", {"gradient_moment": None}, "needs the gradient moment of the queries"),
        ("query_key", {"input_mean": None}, "the input mean of queries that have a bias"),
    ],
)
def test_what_is_missing_is_said(method: str, lacking: dict[str, None], message: str) -> None:
    facts = {"input_mean": torch.zeros(DIM), "input_moment": moment(DIM, 0)}
    known = Statistics(9, **{**facts, "gradient_moment": moment(DIM, 1), **lacking})
    roles = ("v", "o") if method == "value_output" else ("k", "q")
    maps = {role: drawn(DIM, DIM, seed=2) for role in roles}
    more = {"head_dim": 3, "biases": dict.fromkeys(roles, torch.ones(DIM)), "unseen": None}
    more = {need: more[need] for need in methods.constant(method, "NEEDS")}
    with pytest.raises(ValueError, match=message):
        methods.get(method)(maps, dict.fromkeys(roles, known), **more)


@pytest.mark.parametrize("method", PAIR)
def test_maps_that_the_loss_ignores_cost_nothing(method: str) -> None:
    roles = ("v", "o") if method == "value_output" else ("k", "q")
    known = Statistics(9, torch.zeros(DIM), moment(DIM, 0), torch.zeros(DIM, DIM))
    maps = {role: drawn(DIM, DIM, seed=2) for role in roles}
    more = {"head_dim": 3, "biases": dict.fromkeys(roles), "unseen": None}
    more = {need: more[need] for need in methods.constant(method, "NEEDS")}
    found = methods.get(method)(maps, dict.fromkeys(roles, known), **more)
    assert not found.losses.any()
