"""Whole matrices as paths through a trellis, chosen with other bits, on a tiny model end to end."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.errors import SpectrimError
from spectrim.job.job import Job
from spectrim.model.architectures import Place
from spectrim.model.sites import find
from spectrim.plan import Decision, Plan, left_dense
from spectrim.recipe.recipe import Recipe
from spectrim.rounding import few_bits, trellis
from spectrim.stages import _rounded_block, quantize
from tiny_models import logits, tokens
from tiny_runs import TOKENS, Made, equal, from_pretrained, load, make, plan_of, shrink, stored

KEEP = "12% of linear bytes"  # of float32: some three and a half bits a weight
PATHS = {"cut": False, "refine": "off", "bits": [4, 8], "trellis": True}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a tiny llama, its cache shared by all runs."""
    return make("llama", tmp_path_factory.mktemp("paths"))


def asked(made: Made, factorize: dict[str, Any] = PATHS, keep: str = KEEP) -> Recipe:
    return Recipe.model_validate(
        {
            "model": str(made.source),
            "keep": keep,
            "calibration": {"text": str(made.text), "tokens": TOKENS},
            "stages": [{"factorize": factorize}, {"quantize": {}}],
        }
    )


@pytest.fixture(scope="module")
def small(plain: Made) -> Path:
    return shrink(asked(plain), plain.folder / "small")


def test_paths_are_chosen_within_the_bytes_and_run(plain: Made, small: Path) -> None:
    plan = plan_of(small)
    chosen = [one for one in plan.decisions if one.trellis]
    assert chosen and {one.stored_as for one in chosen} == {"trellis"}
    assert all(one.predicted_loss > 0 and one.bits == 0 for one in chosen)
    names = tuple(f"{one.site}." for one in plan.decisions)
    held = sum(one.nbytes for name, one in stored(small).items() if name.startswith(names))
    assert 0.8 * plan.about["budget"]["size"] < held <= plan.about["budget"]["size"]
    model = from_pretrained(plain, small)
    module = model.get_submodule(chosen[0].site)
    assert type(module).__name__ == "Trellis" and module.matrix.rate == chosen[0].trellis
    assert torch.equal(logits(model, tokens()), logits(load(small), tokens()))


def test_the_predicted_loss_is_near_what_the_model_loses(plain: Made, small: Path) -> None:
    dense, packed = (
        logits(load(folder), tokens(sequences=8)).log_softmax(-1)
        for folder in (plain.source, small)
    )
    lost = float((dense.exp() * (dense - packed)).sum(-1).mean())  # in expectation, nats per token
    predicted = sum(one.predicted_loss for one in plan_of(small).decisions)
    assert 0.5 < lost / predicted < 2


def test_a_plan_with_paths_is_replayed_and_gone_on_with_bit_for_bit(
    plain: Made, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, done = quantize._block, []

    def dies(job: Job, options: object, place: Place, *rest: object) -> object:
        if done:
            raise KeyboardInterrupt
        done.append(place)
        return pack(job, options, place, *rest)  # type: ignore[arg-type]

    plan, again = small / "plan.json", plain.folder / "anew" / "again"  # with a cache of its own
    again.parent.mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(quantize, "_block", dies)
        shrink(asked(plain), again, plan=plan)
    shrink(asked(plain), again, plan=plan)
    assert equal(stored(small), stored(again)) and plan_of(small) == plan_of(again)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trellis": 81}, "81 bits for 16 numbers; expected 8 to 80"),
        ({"trellis": 7}, "7 bits for 16 numbers; expected 8 to 80"),
        ({"trellis": 32, "bits": 4, "group": 64}, "which whole matrices are"),
        ({"trellis": 32, "format": "low_rank", "rank": 8}, "which whole matrices are|only"),
    ],
)
def test_paths_that_cannot_be_are_one_line(
    changes: dict[str, Any], said: str, plain: Made, small: Path
) -> None:
    plan = plan_of(small)
    first = next(one for one in plan.decisions if one.trellis)
    path = edited_plan(plain, plan, replace(first, **changes))
    with pytest.raises(SpectrimError, match=said) as raised:
        shrink(asked(plain), plain.folder / "edited", plan=path)
    assert first.site in str(raised.value) and "\n" not in str(raised.value)


def test_only_searches_for_paths_go_to_threads_of_their_own(
    plain: Made, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int, bool]] = []

    def watched(*given: Any) -> Any:
        own = threading.current_thread() is not threading.main_thread()
        seen.append((own, torch.get_num_threads(), given[3].trellis > 0))
        return few_bits.few_bits(*given)

    monkeypatch.setattr(_rounded_block, "few_bits", watched)
    shrink(asked(plain), plain.folder / "watched", plan=small / "plan.json")
    codes = asked(plain, {"cut": False, "refine": "off", "bits": [2, 4]})
    shrink(codes, plain.folder / "codes")
    assert {path for own, _, path in seen if own} == {True}
    assert {own for own, _, path in seen if not path} == {False}
    assert len({threads for _, threads, _ in seen}) == 1


def test_without_kernels_paths_are_refused_before_the_long_work(
    plain: Made, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(job: Job) -> Path:
        raise AssertionError("statistics are the long work")

    monkeypatch.setattr(trellis, "library", lambda: None)
    monkeypatch.setattr(Job, "statistics", never)
    for plan in (None, small / "plan.json"):
        with pytest.raises(SpectrimError, match="which this installation lacks"):
            shrink(asked(plain), plain.folder / "lacking", plan=plan)


def edited_plan(plain: Made, plan: Plan, *decisions: Decision) -> Path:
    """Return the file of a plan with these decisions in the place of those for their sites."""
    by_site = {one.site: one for one in (*plan.decisions, *decisions)}
    path = plain.folder / "edited.json"
    path.write_text(replace(plan, decisions=tuple(by_site.values())).to_json())
    return path


def test_all_but_the_rate_follows_where_a_plan_is_edited(plain: Made, small: Path) -> None:
    plan = plan_of(small)
    first = next(one for one in plan.decisions if one.trellis)
    said = {"rank": 3, "bias": True, "stored": 7, "dense": 9, "method": "x", "owner": "y"}
    path = edited_plan(plain, plan, replace(first, trellis=17, **said))
    made = shrink(asked(plain), plain.folder / "edited", plan=path)
    assert plan_of(made)[first.site] == replace(first, trellis=17)
    assert not any(name.startswith(first.site) and "bias" in name for name in stored(made))


def test_paths_outside_the_blocks_are_one_line(plain: Made, small: Path) -> None:
    table = next(site for site in find(load(plain.source)) if site.block < 0)
    path = edited_plan(plain, plan_of(small), replace(left_dense(table), trellis=32))
    with pytest.raises(SpectrimError, match="only maps of the blocks can be; set its trellis to 0"):
        shrink(asked(plain), plain.folder / "edited", plan=path)


def test_paths_without_bits_are_one_line(plain: Made) -> None:
    with pytest.raises(SpectrimError, match="offers trellis beside bits; name some"):
        shrink(asked(plain, {"trellis": True}), plain.folder / "none")
