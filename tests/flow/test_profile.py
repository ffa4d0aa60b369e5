"""Profiles of tiny models: true to the whole model, complete, resumable, refused in one line."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from spectrim.cutting import sensitivity
from spectrim.job.job import dense_plan
from spectrim.job.opening import open_job
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.plan import Plan
from spectrim.verbs.profile import Asked, profile
from tiny_folders import tiny_folder
from tiny_runs import files, load, recipe, shrink, write_text

ROLES = ("q", "k", "v", "o", "gate", "up", "down")
BLOCKS = 3


def profiled(folder: Path, output: str = "profile", **asked: Any) -> dict[str, Any]:
    """Profile the model in a folder, its cache beside it."""
    asked_of = recipe(folder / "source", folder / "text.txt", rank_multiple=1)
    with quiet():
        return profile(asked_of, folder / output, Asked(**asked), cache=folder / "cache")


def made(folder: Path, family: str = "llama") -> Path:
    tiny_folder(folder / "source", family)
    write_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("profiles"))


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    return profiled(folder, sizes=(0.75, 0.4), cumulative=True)


def of(found: dict[str, Any], cut: str = "alone", size: float | None = None) -> list[Any]:
    rows = [one for one in found["rows"] if one["cut"] == cut]
    return [one for one in rows if size is None or one["size"] == size]


def job_of(folder: Path) -> Any:
    source = sources.resolve(str(folder / "source"), folder / "cache")
    asked = recipe(folder / "source", folder / "text.txt")
    return open_job(asked, source, folder / "cache", lambda *_: None)


def whole_loss(model: Any, ids: torch.Tensor) -> float:
    """Return the loss of a whole model on sequences, nats per token."""
    if not model.config.is_encoder_decoder:
        logits, targets = model(ids, use_cache=False).logits[:, :-1], ids[:, 1:]
    else:
        half = ids.shape[1] // 2
        begin = torch.full((len(ids), 1), model.config.decoder_start_token_id)
        inputs = torch.cat((begin, ids[:, half:-1]), 1)
        logits = model(input_ids=ids[:, :half], decoder_input_ids=inputs, use_cache=False).logits
        targets = ids[:, half:]
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return float(losses.double().mean())


# what is measured


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "site"),
    [
        ("llama", "model.layers.1.mlp.down_proj"),
        ("bart", "model.encoder.layers.1.fc1"),
        ("t5_gated", "decoder.block.1.layer.1.EncDecAttention.k"),
    ],
)
def test_a_site_costs_what_the_whole_model_loses_with_that_map_cut(
    tmp_path: Path, family: str, site: str
) -> None:
    folder = made(tmp_path, family)
    found = profiled(folder, sizes=(0.4,))
    (row,) = (one for one in found["rows"] if one["site"] == site)
    job = job_of(folder)
    decisions = tuple(
        replace(one, format="pivoted", rank=row["rank"], method="loss_aware_svd")
        if one.site == site
        else one
        for one in dense_plan(job).decisions
    )
    (folder / "plan.json").write_text(Plan(decisions, 0.0, {"refined": False}).to_json())
    small = shrink(
        recipe(folder / "source", folder / "text.txt"), folder / "small", folder / "plan.json"
    )
    ids = job.splits.search.ids[: found["sequences"]]
    before, after = (whole_loss(load(one), ids) for one in (folder / "source", small))
    assert found["dense"]["loss"] == pytest.approx(before, abs=1e-5)
    assert row["measured"] == pytest.approx(after - before, abs=1e-5)
    assert abs(row["measured"]) > 1e-4


def test_every_site_and_size_has_a_line_with_the_largest_rank_that_fits(
    folder: Path, found: dict[str, Any]
) -> None:
    with (folder / "profile" / "profile.csv").open() as file:
        lines = list(csv.DictReader(file))
    alone = [one for one in lines if one["cut"] == "alone"]
    places = {(int(one["block"]), one["role"], float(one["size"])) for one in alone}
    assert len(alone) == len(places) == 2 * BLOCKS * len(ROLES)
    assert places == {(b, r, s) for b in range(BLOCKS) for r in ROLES for s in (0.75, 0.4)}
    (one,) = (o for o in alone if (o["block"], o["role"], o["size"]) == ("2", "up", "0.4"))
    rank, numbers = int(one["rank"]), 80 * 48
    assert one["site"] == "model.layers.2.mlp.up_proj"
    assert rank * (80 + 48 - rank) <= 0.4 * numbers < (rank + 1) * (80 + 48 - rank - 1)
    assert all(one["metric"] == "loss" and float(one["predicted"]) > 0 for one in alone)
    assert len(lines) - len(alone) == 2 * 2 * BLOCKS
    assert found["left_dense"] == []


def test_less_left_costs_more_and_so_do_more_blocks(found: dict[str, Any]) -> None:
    small, large = (sum(one["measured"] for one in of(found, size=size)) for size in (0.4, 0.75))
    assert small > large
    forwards, backwards = (of(found, way, 0.4) for way in ("first to last", "last to first"))
    assert [one["block"] for one in forwards] == [0, 1, 2]
    assert [one["block"] for one in backwards] == [2, 1, 0]
    assert forwards[-1]["measured"] == backwards[-1]["measured"]  # all blocks, either way
    for line in (forwards, backwards):
        assert line[0]["predicted"] < line[1]["predicted"] < line[2]["predicted"]
    assert forwards[2]["predicted"] == pytest.approx(
        sum(one["predicted"] for one in of(found, size=0.4))
    )


def test_a_block_and_a_role_are_all_their_sites(folder: Path, found: dict[str, Any]) -> None:
    blocks = of(profiled(folder, "blocks", by="block", sizes=(0.4,)))
    assert [(one["block"], one["role"], one["site"]) for one in blocks] == [
        (0, "all", ""), (1, "all", ""), (2, "all", ""),
    ]  # fmt: skip
    assert blocks[0]["measured"] == of(found, "first to last", 0.4)[0]["measured"]
    assert blocks[2]["measured"] == of(found, "last to first", 0.4)[0]["measured"]
    roles = of(profiled(folder, "roles", by="role", sizes=(0.4,)))
    assert [(one["block"], one["role"]) for one in roles] == [(None, role) for role in ROLES]
    for role in roles:
        own = [one for one in of(found, size=0.4) if one["role"] == role["role"]]
        assert role["predicted"] == pytest.approx(sum(one["predicted"] for one in own))


def test_perplexity_and_divergence_are_other_words_for_the_same_cut(
    folder: Path, found: dict[str, Any]
) -> None:
    before = found["dense"]["loss"]
    options = {"by": "block", "sizes": (0.4,)}
    loss, perplexity, apart = (
        of(profiled(folder, "other", metric=metric, **options))
        for metric in ("loss", "perplexity", "divergence")
    )
    for one, other in zip(loss, perplexity, strict=True):
        for name in ("predicted", "measured"):
            raised = torch.tensor(before + one[name]).exp() - torch.tensor(before).exp()
            assert other[name] == pytest.approx(float(raised), rel=1e-4)
    assert all(one["measured"] > 0 for one in apart)
    assert [one["predicted"] for one in apart] == [one["predicted"] for one in loss]


@torch.no_grad()
def test_the_divergence_is_that_of_the_whole_models(folder: Path) -> None:
    found = profiled(
        folder, "apart", by="block", sizes=(0.4,), metric="divergence", cumulative=True
    )
    everything = of(found, "first to last")[-1]
    job = job_of(folder)
    plan = {"refined": False}
    ranks = {one["site"]: one["rank"] for one in of(profiled(folder, "ranks", sizes=(0.4,)))}
    decisions = tuple(
        replace(one, format="pivoted", rank=ranks[one.site], method="loss_aware_svd")
        for one in dense_plan(job).decisions
    )
    (folder / "plan.json").write_text(Plan(decisions, 0.0, plan).to_json())
    asked = recipe(folder / "source", folder / "text.txt")
    small = shrink(asked, folder / "small", folder / "plan.json")
    ids = job.splits.search.ids[: found["sequences"]]
    dense, cut = (
        load(one)(ids, use_cache=False).logits[:, :-1].log_softmax(-1)
        for one in (folder / "source", small)
    )
    assert found["predicted_tokens"] <= sensitivity.COMPARED
    mean = (dense.exp() * (dense - cut)).sum(-1).mean()
    assert everything["measured"] == pytest.approx(float(mean), rel=1e-4)


# interrupted


class Killed(BaseException):
    """What an interrupt raises in the middle of the work."""


def test_interrupted_and_resumed_it_is_the_same_as_without(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]
) -> None:
    again = made(tmp_path)
    (again / "source").rename(again / "unused")
    (again / "source").symlink_to(folder / "source")  # the same name is a part of the record
    add, added = sensitivity.Record.add, []

    def counted(record: sensitivity.Record, key: str, values: dict[str, float]) -> None:
        if len(added) == 17:
            added.clear()
            with record.file.open("a") as file:
                file.write('["' + key)  # what a kill in the middle of a line leaves
            raise Killed
        added.append(key)
        add(record, key, values)

    monkeypatch.setattr(sensitivity.Record, "add", counted)
    with pytest.raises(Killed):
        profiled(again, sizes=(0.75, 0.4), cumulative=True)
    assert not (again / "profile").exists()
    added.clear()
    monkeypatch.setattr(sensitivity.Record, "add", lambda *a: (added.append(a), add(*a)))
    resumed = profiled(again, sizes=(0.75, 0.4), cumulative=True)
    distinct = 2 * (BLOCKS * len(ROLES) + 2 * BLOCKS - 1)  # all blocks either way are the same
    assert len(added) == distinct - 17
    assert resumed["rows"] == found["rows"] and resumed["dense"] == found["dense"]
    first, second = (files(one / "profile") for one in (folder, again))
    assert first.keys() == second.keys() == {"profile.csv", "profile.html", "profile.json"}
    assert first["profile.csv"] == second["profile.csv"]
    added.clear()
    profiled(again, sizes=(0.4,))
    assert added == []  # nothing is measured twice
