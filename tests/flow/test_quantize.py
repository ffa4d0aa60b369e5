"""Models in few bits end to end: packed on disk, loaded to the bit, counted rightly, replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spectrim.errors import SpectrimError
from spectrim.formats import FactoredLinear
from spectrim.formats.packed.matrix import PackedMatrix
from spectrim.job.opening import open_job
from spectrim.metrics.size import bytes_of_weights, bytes_on_disk, size
from spectrim.model import sources
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Recipe
from spectrim.rounding.baselines import BITS, weight_only
from spectrim.verbs.inspect import inspect
from spectrim.verbs.shrink import shrink as whole_shrink
from tiny_models import logits, tokens
from tiny_runs import (
    TOKENS,
    Made,
    equal,
    family_folder,
    files,
    from_pretrained,
    load,
    plan_of,
    saved_again,
    shrink,
    stored,
    write_text,
)

FAMILIES = ["llama", "gpt2", "falcon", "mixtral", "bart", "t5"]
QUANTIZE = {"quantize": {"bits": 4, "group": 32}}
CUT = {"factorize": {"refine": "off"}}


def asked(source: Path, *stages: object, keep: str = "80% of linear") -> Recipe:
    """Return a recipe of these stages on the text beside a model."""
    changes = {
        "model": str(source),
        "keep": keep,
        "stages": list(stages),
        "calibration.text": str(write_text(source.parent / "text.txt")),
        "calibration.tokens": TOKENS,
    }
    return Recipe.build(None, changes)


def note(folder: Path) -> dict[str, Any]:
    """Return what the stage said of a run."""
    said: dict[str, Any] = plan_of(folder).about["found"]["quantized"]
    return said


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family's tiny model cut to 80 % and then packed in four bits."""
    folder = tmp_path_factory.mktemp(request.param)
    source = family_folder(folder / "source", request.param, dtype=torch.bfloat16)
    small = shrink(asked(source, CUT, QUANTIZE), folder / "small")
    return Made(request.param, source, folder / "text.txt", small)


@pytest.fixture(scope="module")
def whole(made: Made) -> Made:
    """Return the same model, not cut and packed in eight bits."""
    stage = {"quantize": {"bits": 8, "group": 0, "symmetric": True}}
    small = shrink(asked(made.source, stage), made.folder / "whole")
    return Made(made.family, made.source, made.text, small)


def test_factors_and_matrices_are_packed_and_load_to_the_bit(made: Made) -> None:
    model = from_pretrained(made, made.small)
    plan = plan_of(made.small)
    assert {one.format for one in plan.decisions} > {"dense"} and all(
        (one.bits, one.group, one.symmetric) == (4, 32, False) for one in plan.decisions
    )
    for one in plan.decisions:
        module = model.get_submodule(one.site)
        assert type(module).__name__ == "Quantized" + one.format.title().replace("_", "")
    held = {name: tensor for name, tensor in model.state_dict().items() if "packed" in name}
    kept = stored(made.small)
    assert held and all(torch.equal(kept[name], tensor) for name, tensor in held.items())
    assert logits(model, tokens()).isfinite().all()
    saved_again(made, made.folder / "again")
    said = note(made.small)
    assert said["bits"] == {"4": len(plan.decisions)} and said["left"] == []
    assert said["predicted_loss"] > 0 and said["rounding"] == "gptq"


def test_numbers_and_bytes_are_counted_as_they_are(made: Made) -> None:
    model, plan = from_pretrained(made, made.small), plan_of(made.small)
    counted = size(model, made.small)
    assert counted.linear_numbers == sum(one.stored for one in plan.decisions)
    dense = size(load(made.source), made.source)
    cut = sum(one.dense - one.stored for one in plan.decisions)
    assert counted.numbers == dense.numbers - cut
    kept = stored(made.small)
    assert counted.bytes_of_weights == sum(tensor.nbytes for tensor in kept.values())
    assert counted.bytes_on_disk <= counted.bytes_of_weights  # codes are entropy-coded
    if made.family == "falcon":  # whose maps are large enough for it
        assert counted.bytes_on_disk < counted.bytes_of_weights
    modules = dict(model.named_modules()).items()
    packed = {name: one for name, one in modules if isinstance(one, PackedMatrix)}
    assert sum(kept[f"{name}.packed"].numel() for name in packed) == sum(
        one.rows * -(-one.columns // 2) for one in packed.values()
    )
    shown = {one["site"]: one for one in inspect(str(made.small))["sites"] if one["block"] >= 0}
    for one in plan.decisions:
        found = shown[one.site]
        assert (found["format"], found["bits"]) == (one.stored_as, 4)
        assert (found["stored"], found["dense"]) == (one.stored, one.dense)


def test_eight_bits_lose_next_to_nothing(whole: Made) -> None:
    model, dense = from_pretrained(whole, whole.small), load(whole.source)
    ids = tokens()
    assert plan_of(whole.small).predicted_loss == 0
    before = logits(dense, ids).float()
    after = logits(model, ids).float()
    rounded = logits(weight_only(dense, BITS["int8"]), ids).float()
    assert (after - before).norm() < 2 * (rounded - before).norm()
    assert bytes_on_disk(whole.small) < 0.75 * bytes_on_disk(whole.source)
    assert note(whole.small)["predicted_loss"] < 0.01


def test_plans_are_replayed_to_the_bit(made: Made, whole: Made) -> None:
    for first in (made, whole):
        again = first.folder / "again" / first.small.name  # a card has the folder's name
        shrink(asked(first.source, CUT), again, plan=first.small / "plan.json")
        assert files(again) == files(first.small)


@pytest.mark.parametrize("family", ["llama"])
def test_a_plan_may_give_every_site_its_own_bits(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family, dtype=torch.bfloat16)
    first = shrink(asked(source, CUT, QUANTIZE), tmp_path / "small")
    data = json.loads((first / "plan.json").read_text())
    for place, one in enumerate(data["decisions"]):
        one["bits"], one["group"] = (2, 3, 4, 8, 0)[place % 5], (0, 64)[place % 2]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    small = shrink(asked(source, CUT, QUANTIZE), tmp_path / "mixed", plan=tmp_path / "plan.json")
    model = load(small)
    for one in plan_of(small).decisions:
        module = model.get_submodule(one.site)
        if one.bits:
            assert (module.grid.bits, module.grid.group) == (one.bits, one.group)
        else:
            assert not hasattr(module, "grid")
    assert set(note(small)["bits"]) == {"2", "3", "4", "8"} and note(small)["left"]


def test_later_loss_is_the_less_the_more_bits(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    losses: dict[object, float] = {}
    for options in (
        {"bits": 2}, {"bits": 3}, {"bits": 4}, {"bits": 8}, {"bits": 3, "rounding": "nearest"},
        {"bits": 3, "order": True},
    ):  # fmt: skip
        small = shrink(asked(source, {"quantize": options}), tmp_path / "small")
        losses[tuple(options.values())] = note(small)["predicted_loss"]
    assert losses[2,] > losses[3,] > losses[4,] > losses[8,]
    assert max(losses[3,], losses[3, True]) < losses[3, "nearest"]


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_what_blocks_before_deliver_is_made_up_for(family: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", family, dtype=torch.bfloat16)
    found = sources.resolve(str(source), tmp_path)
    job = open_job(asked(source, QUANTIZE), found, tmp_path, lambda *_: None)
    ids, dense = job.splits.calibration.ids, load(source)
    missed = {}
    for inputs in ("dense", "rounded"):
        stage = {"quantize": {"bits": 2, "group": 32, "inputs": inputs}}
        small = load(shrink(asked(source, stage), tmp_path / inputs))
        apart = logits(small, ids).float() - logits(dense, ids).float()
        missed[inputs] = float(apart.square().mean())
    assert missed["rounded"] < 0.95 * missed["dense"]


def test_what_is_protected_or_in_another_format_is_left(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    cut = {"factorize": {"method": "tensor_train", "protect": ["block 1"], "refine": "off"}}
    stages = (cut, {"quantize": {"protect": ["q_proj"]}})
    small = shrink(asked(source, *stages), tmp_path / "small")
    plan = plan_of(small)
    trains = {one.site for one in plan.decisions if one.format == "tensor_train"}
    guarded = {one.site for one in plan.decisions if one.role == "q"}
    assert trains and set(note(small)["left"]) == trains | guarded
    before, after = stored(source), stored(small)
    names = [f"{name}.weight" for name in guarded - trains]
    assert names and equal({n: before[n] for n in names}, {n: after[n] for n in names})
    assert logits(load(small), tokens()).isfinite().all()


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    recipe = asked(source, CUT, QUANTIZE)
    whole = files(shrink(recipe, tmp_path / "small"))

    def stop(done: int, total: int, what: str) -> None:
        if (what, done) == ("rounding", 2):
            raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        whole_shrink(recipe, tmp_path / "small", cache=cache, evaluate=False, progress=stop)
    packed: list[object] = []
    from spectrim.stages import _rounded_block

    few_bits = _rounded_block.few_bits
    monkeypatch.setattr(
        _rounded_block, "few_bits", lambda *given: packed.append(given[3]) or few_bits(*given)
    )
    assert files(shrink(recipe, tmp_path / "small")) == whole
    assert len(packed) == 7  # of the last block


WRONG = [
    ([QUANTIZE, QUANTIZE], {}, "quantize has packed the numbers already; leave out"),
    ([QUANTIZE, CUT], {}, "factorize needs the maps as they came, and an earlier stage"),
    ([QUANTIZE, {"sparsify": {}}], {}, "sparsify needs dense weights, and an earlier stage"),
    ([{"quantize": {"protect": ["."]}}], {}, "quantize finds no map to pack, as all are prot"),
    (
        [{"quantize": {"bits": 5}}],
        {},
        "bits of stage quantize cannot be 5; it should be 2, 3, 4 or 8",
    ),
    ([QUANTIZE], {"bits": 5}, "the plan stores .* in 5 bits in groups of 32; expected 1, 2, 3, 4"),
    ([CUT], {}, "the plan stores .* in 4 bits, but the recipe has no stage quantize; add it"),
]


@pytest.mark.parametrize(("stages", "edit", "message"), WRONG)
def test_what_cannot_be_is_said_in_one_line(
    stages: list[object], edit: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    plan = None
    if edit or stages == [CUT]:
        plan = shrink(asked(source, QUANTIZE), tmp_path / "first") / "plan.json"
        data = json.loads(plan.read_text())
        data["decisions"][0] |= edit
        if stages == [CUT]:
            data.pop("recipe")
        plan.write_text(json.dumps(data))
    with pytest.raises(SpectrimError, match=message) as caught:
        shrink(asked(source, *stages), tmp_path / "small", plan=plan)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


def test_the_report_says_bits_and_packed_bytes(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    small, cache = tmp_path / "small", tmp_path / "cache"
    with quiet():
        whole_shrink(asked(source, CUT, QUANTIZE), small, cache=cache)
    said = f"{len(plan_of(small).decisions)} in 4 bits"
    for name in ("README.md", "report.html"):
        assert said in (small / name).read_text()
    assert ", 4 bits" in (small / "report.html").read_text()
    rows = json.loads((small / "scores.json").read_text())["rows"]
    measured = {row["label"]: row["bytes_of_weights"]["value"] for row in rows}
    assert measured["small"] == bytes_of_weights(small) < measured["int4"]


def test_training_reaches_the_steps_of_a_loaded_model(whole: Made) -> None:
    model = from_pretrained(whole, whole.small)
    modules = [one for one in model.modules() if isinstance(one, FactoredLinear)]
    inputs = {"input_ids": tokens()}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens()
    model(**inputs).logits.float().square().mean().backward()
    got = [isinstance(one.weight, nn.Parameter) and one.weight.grad is not None for one in modules]
    assert sum(got) > len(got) // 2  # of a mixture, the experts that tokens came to
