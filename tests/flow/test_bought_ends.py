"""Embedding and head bought along with the maps from one budget: sizes, prices, bits, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectrim.cutting import end_losses, tables
from spectrim.cutting.tables import (
    divergence,
    divergence_of_words,
    embedding_moment,
    head_moment,
    with_rows,
    words_of,
)
from spectrim.errors import SpectrimError
from spectrim.formats.packed.scales import Grid
from spectrim.job.job import Job
from spectrim.job.opening import open_job
from spectrim.metrics.size import bytes_on_disk
from spectrim.model import sources
from spectrim.model.sites import find, tied
from spectrim.recipe.options import Factorize
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.embedding_and_head import TableRounding
from spectrim.walk.statistics import embedding_file
from spectrim.walk.stream import Stream
from spectrim.walk.sweeps import collect
from spectrim.walk.walk import BlockWalk
from tiny_models import logits, tokens
from tiny_runs import (
    TOKENS,
    Made,
    family_folder,
    files,
    from_pretrained,
    load,
    plan_of,
    shrink,
    write_text,
)

BOUGHT = {"factorize": {"bits": [2, 4, 8], "ends": [2, 4, 8], "cut": False, "group": 32}}


def asked(source: Path, keep: str, *stages: object) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(source),
            "keep": keep,
            "stages": list(stages),
            "calibration": {
                "text": str(write_text(source.parent / "text.txt")),
                "tokens": TOKENS,
            },
        }
    )


def opened(recipe: Recipe, cache: Path) -> Job:
    source = sources.resolve(recipe.model, cache)
    return open_job(recipe, source, cache, lambda *_: None)


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny model, its head its own or its embedding's, a quarter of whose bytes stay."""
    folder = tmp_path_factory.mktemp(request.param)
    source = family_folder(folder / "source", request.param, dtype=torch.bfloat16)
    small = shrink(asked(source, "30% of bytes", BOUGHT, "quantize"), folder / "small")
    return Made(request.param, source, folder / "text.txt", small)


def bought(made: Made) -> dict[str, Any]:
    return {one.role: one for one in plan_of(made.small).decisions if one.block < 0}


def test_the_whole_file_is_as_small_as_asked(made: Made) -> None:
    whole = bytes_on_disk(made.source)
    assert 0.2 * whole < bytes_on_disk(made.small) <= 0.3 * whole + 4096  # names of tensors
    roles = {"embed"} if tied(load(made.source)) else {"embed", "head"}
    assert bought(made).keys() == roles
    assert all(one.bits in (2, 4, 8) for one in bought(made).values())


def test_the_tables_are_those_of_the_plan_head_by_gptq(made: Made) -> None:
    model, dense = from_pretrained(made, made.small), load(made.source)
    embed = model.get_input_embeddings()
    one = bought(made)["embed"]
    assert embed.grid == Grid(one.bits, one.group, one.symmetric)
    job = opened(asked(made.source, "30% of bytes", BOUGHT, "quantize"), made.folder / "cache")
    metric = end_losses.metric_of(job, job.architecture.embed)
    gradients = embedding_moment(job)
    factor = float(getattr(dense.get_input_embeddings(), "embed_scale", 1.0))
    read = head_moment(job) if tied(dense) else torch.zeros_like(gradients)
    assert torch.allclose(metric, read + factor**2 * gradients, rtol=2e-2)
    table = dense.get_input_embeddings().weight.detach()
    (expected,) = TableRounding(embed.grid, metric)(table, torch.bfloat16)
    held = embed.dense().float()
    assert torch.allclose(held, expected.dequantize(one.group), rtol=1e-2, atol=1e-3)
    assert logits(model, tokens()).isfinite().all()


def test_prices_are_what_the_loss_rises_by(made: Made) -> None:
    """The divergence of a table's rounding, seen from the outside: by the whole model's logits."""
    recipe = asked(made.source, "30% of bytes", BOUGHT, "quantize")
    job = opened(recipe, made.folder / "cache")
    options = recipe.factorize
    assert options is not None
    losses = end_losses.end_losses(job, options)
    ids = end_losses.measured_tokens(job).ids
    for site in (one for one in find(load(made.source)) if one.block < 0):
        low, middle, high = losses[site.name]
        assert low > middle > high > 0
        changed, dense = load(made.source), load(made.source)
        grid = Grid(2, 32, symmetric=False)
        table = dense.get_submodule(site.name).weight.detach()
        parts = TableRounding(grid, end_losses.metric_of(job, site.name))(table, torch.bfloat16)
        with torch.no_grad():
            changed.get_submodule(site.name).weight.copy_(parts[0].dequantize(32))
            right = dense(ids).logits.float().log_softmax(-1)
            wrong = changed(ids).logits.float().log_softmax(-1)
        measured = float((right.exp() * (right - wrong)).sum(-1).mean())
        assert low == pytest.approx(measured, rel=0.1)


def test_some_words_tell_what_all_would(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = asked(made.source, "30% of bytes", BOUGHT, "quantize")
    job = opened(recipe, made.folder / "cache")
    walk = job.walk(end_losses.measured_tokens(job))
    dense = Stream(walk).through(walk.block)
    name = f"{job.architecture.head}.weight"
    table = job.model.get_parameter(name).detach().float()
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    changed = with_rows(dense, name, table + 0.3 * table.std() * noise, job=job)
    exact = divergence(walk, dense, *changed)
    every = words_of(dense)
    assert len(every.rows) == len(table) and bool((every.counted == 1).all())
    assert divergence_of_words(dense, every, *changed) == pytest.approx(exact, rel=1e-2)
    monkeypatch.setattr(tables, "LIKELY", 1)
    monkeypatch.setattr(tables, "OTHERS", 16)
    few = words_of(dense)
    assert len(few.rows) < len(table)
    assert float(few.counted.sum()) == pytest.approx(len(table))
    assert divergence_of_words(dense, few, *changed) == pytest.approx(exact, rel=0.2)


def test_gradients_in_front_of_the_blocks_are_the_models(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the labels of the text, which have no noise, as back-propagation has them."""
    job = opened(asked(made.source, "30% of bytes", BOUGHT, "quantize"), made.folder / "cache")
    of_text = BlockWalk.loss_gradient
    monkeypatch.setattr(BlockWalk, "drawn_gradient", lambda *given: of_text(*given)[0])
    collect(job.walk(job.splits.calibration), tmp_path / "swept", [], lambda *_: None)
    found = load_file(embedding_file(tmp_path / "swept"))["gradient_moment"]
    model, ids = load(made.source), job.splits.calibration.ids
    flows: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_hook(
        lambda _, __, delivered: delivered.register_hook(flows.append) and None
    )
    predicted = ids[:, 1:]
    logits_of = model(ids).logits[:, :-1].float()
    torch.nn.functional.cross_entropy(
        logits_of.flatten(0, 1), predicted.flatten(), reduction="sum"
    ).backward()
    rows = flows[0].float().flatten(0, 1)
    expected = rows.T @ rows / predicted.numel()
    assert (found - expected).norm() < 0.1 * expected.norm()


def test_statistics_of_an_earlier_version_are_made_up_for(made: Made) -> None:
    job = opened(asked(made.source, "30% of bytes", BOUGHT, "quantize"), made.folder / "cache")
    found, file = embedding_moment(job), embedding_file(job.statistics())
    file.unlink()
    again = embedding_moment(job)
    assert not file.exists() and again.shape == found.shape
    assert float(again.trace()) == pytest.approx(float(found.trace()), rel=0.5)
    save_file({"gradient_moment": found}, file)


def test_a_dearer_table_gets_more_bits(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = asked(made.source, "30% of bytes", BOUGHT, "quantize")
    job = opened(recipe, made.folder / "cache")
    options = recipe.factorize
    assert options is not None
    from spectrim.cutting.allocation import allocate, units
    from spectrim.cutting.bit_curves import in_few_bits
    from spectrim.cutting.bit_losses import bit_losses

    maps = in_few_bits(job, options, [], bit_losses(job, options))
    known = end_losses.end_losses(job, options)

    def bits(times: float) -> int:
        priced = {name: [times * loss for loss in each] for name, each in known.items()}
        ends = end_losses.end_curves(job, options, priced)
        plan = allocate(job, options, units(job, maps + ends))
        assert plan.decisions[0].role == "embed"
        return min(one.bits or 16 for one in plan.decisions if one.block < 0)

    assert bits(1e-6) == 2 and bits(1e6) > 2


def test_the_plan_is_replayed_to_the_bit(made: Made) -> None:
    again = made.folder / "again" / "small"
    recipe = asked(made.source, "30% of bytes", BOUGHT, "quantize")
    shrink(recipe, again, plan=made.small / "plan.json")
    assert files(again) == files(made.small)


def test_a_table_that_encoder_and_decoder_read_is_bought(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "t5", dtype=torch.bfloat16)
    recipe = asked(source, "40% of bytes", BOUGHT, "quantize")
    job = opened(recipe, tmp_path / "cache")
    assert recipe.factorize is not None
    for low, middle, high in end_losses.end_losses(job, recipe.factorize).values():
        assert low > middle > high > 0


def test_protected_tables_stay(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    recipe = asked(source, "50% of bytes", BOUGHT, "quantize")
    job = opened(recipe, tmp_path / "cache")
    options = Factorize(bits=(4,), ends=(4,), protect=("embed",))
    assert [one.site.role for one in end_losses.end_curves(job, options, None)] == ["head"]


@pytest.mark.parametrize(
    ("keep", "factorize", "quantize", "said"),
    [
        ("25% of linear bytes", {"bits": [4], "ends": [4]}, {}, "outside the linear maps; keep"),
        ("25% of bytes", {"ends": [4]}, {}, "name bits too"),
        ("25% of bytes", {"bits": [4], "ends": [4]}, {"ends": 8}, "leave out one of the two"),
        ("25% of bytes", {"bits": [4], "ends": [5]}, {}, "it should be 2, 3, 4 or 8"),
    ],
)
def test_what_cannot_be_bought_is_refused(
    keep: str, factorize: dict[str, Any], quantize: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SpectrimError, match=said):
        Recipe.build(
            None,
            {"model": "m", "keep": keep, "stages": [{"factorize": factorize},
                                                    {"quantize": quantize}]},
        )  # fmt: skip


def test_too_small_a_file_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    with pytest.raises(SpectrimError, match="^cannot keep 5% of bytes: what is not factored"):
        shrink(asked(source, "5% of bytes", BOUGHT, "quantize"), tmp_path / "small")
    assert not list((tmp_path / "cache").glob("decompositions/*"))
