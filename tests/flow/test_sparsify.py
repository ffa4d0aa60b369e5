"""Sparse models end to end: zeros where promised, stored in full, loaded by plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.metrics.size import bytes_on_disk
from spectrim.metrics.zeros import zeros
from spectrim.model.sites import find, weight
from spectrim.model.weights import quiet
from spectrim.recipe.recipe import Recipe
from spectrim.verbs.shrink import shrink as whole_shrink
from tiny_folders import change_tensors
from tiny_models import build_empty, logits, tokens, unpack
from tiny_runs import (
    TOKENS,
    Made,
    equal,
    family_folder,
    files,
    kept,
    load,
    plan_of,
    shrink,
    stored,
    write_text,
)

FAMILIES = ["llama", "gpt2", "mixtral", "bart", "t5", "falcon"]
PLAIN = {"pattern": "2:4", "protect": ["block 1"]}


def asked(source: Path, *stages: object, keep: str = "100% of linear") -> Recipe:
    """Return a recipe of these stages on the text beside a model."""
    text = write_text(source.parent / "text.txt")
    changes = {
        "model": str(source),
        "keep": keep if any("factorize" in stage for stage in stages) else None,
        "stages": list(stages),
        "calibration.text": str(text),
        "calibration.tokens": TOKENS,
    }
    return Recipe.build(None, changes)


def maps(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the matrix of every site inside the blocks, [out, in]."""
    unpack(model)
    inside = [site for site in find(model) if site.block >= 0]
    return {site.name: weight(model.get_submodule(site.name)).detach() for site in inside}


def plainly(folder: Path) -> PreTrainedModel:
    """Load with transformers; the config may name nothing that only spectrim knows."""
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    known: Any = AutoModelForSeq2SeqLM
    if not config.get("is_encoder_decoder"):
        known = AutoModelForCausalLM
    with quiet():
        model, report = known.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    found: PreTrainedModel = model.eval()
    return found


def note(folder: Path) -> dict[str, Any]:
    """Return what the only sparsify stage of a run said."""
    (said,) = plan_of(folder).about["found"]["sparsified"]
    found: dict[str, Any] = said
    return found


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Return a family's tiny model with its blocks but the second at 2:4."""
    folder = tmp_path_factory.mktemp(request.param)
    source = family_folder(folder / "source", request.param)
    small = shrink(asked(source, {"sparsify": PLAIN}), folder / "small")
    return Made(request.param, source, folder / "text.txt", small)


def test_zeros_are_where_the_pattern_wants_them(made: Made) -> None:
    model = plainly(made.small)
    assert logits(model, tokens()).isfinite().all()
    assert 0 < zeros(model) < 0.5
    assert bytes_on_disk(made.small) == bytes_on_disk(made.source), "zeros are stored in full"
    before, after = maps(load(made.source)), maps(model)
    left = {site.name for site in find(build_empty(made.family)) if site.block == 1}
    for name in left:
        assert torch.equal(after[name], before[name])
    for name in after.keys() - left:
        assert ((after[name] != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all(), name
        assert torch.equal(after[name][after[name] != 0], before[name][after[name] != 0])
    said = note(made.small)
    assert (said["pattern"], said["score"]) == ("2:4", "wanda")
    assert said["sites"] == len(after.keys() - left) and said["without_tokens"] == []
    assert said["predicted_loss"] > 0
    assert {one.format for one in plan_of(made.small).decisions} == {"dense"}


def test_what_is_no_map_of_a_block_keeps_its_bits(made: Made) -> None:
    before, after = load(made.source), plainly(made.small)
    sites = maps(before).keys() & maps(after).keys()
    same = [
        {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.removesuffix(".weight") not in sites
        }
        for model in (before, after)
    ]
    assert len(same[0]) > 5 and equal(*same)


def test_updated_weights_load_and_are_predicted_to_lose_less(made: Made) -> None:
    stage = {"sparsify": {**PLAIN, "update": True}}
    other = shrink(asked(made.source, stage), made.folder / "updated")
    model = plainly(other)
    assert zeros(model) == zeros(plainly(made.small))
    assert logits(model, tokens()).isfinite().all()
    assert note(other)["score"] == "sparsegpt"
    assert note(other)["predicted_loss"] < note(made.small)["predicted_loss"]


def test_factors_of_a_sparse_model(made: Made) -> None:
    stages = [{"sparsify": PLAIN}, {"factorize": {"refine": "off"}}]
    small = shrink(asked(made.source, *stages, keep="70% of linear"), made.folder / "both")
    plan = plan_of(small)
    assert sum(one.stored for one in plan.decisions) <= 0.7 * sum(o.dense for o in plan.decisions)
    assert any(one.format != "dense" for one in plan.decisions)
    assert note(small) == note(made.small)
    assert logits(load(small), tokens()).isfinite().all()
    sparse = maps(load(made.small))
    kept_dense = [one.site for one in plan.decisions if one.format == "dense"]
    after = load(small)
    for name in kept_dense:
        if name in dict(after.named_modules()):
            assert torch.equal(weight(after.get_submodule(name)), sparse[name])


def test_the_plan_carried_out_again_gives_the_same_bits(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    stages = [{"sparsify": {"pattern": "75%"}}, {"factorize": {"refine": "off"}}]
    small = shrink(asked(source, *stages, keep="70% of linear"), tmp_path / "small")
    again = shrink(asked(source, "sparsify"), tmp_path / "again", plan=small / "plan.json")
    assert equal(stored(again), stored(small))


def test_two_stages_each_on_their_sites(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    stages = [
        {"sparsify": {"pattern": "2:4", "protect": ["down"]}},
        {"sparsify": {"pattern": "25%", "protect": ["^(q|k|v|o|gate|up)$"]}},
    ]
    small = shrink(asked(source, *stages), tmp_path / "small")
    for name, matrix in maps(load(small)).items():
        wanted = 0.25 if name.endswith("down_proj") else 0.5
        assert float((matrix != 0).float().mean()) == wanted, name
    notes = plan_of(small).about["found"]["sparsified"]
    assert [note["pattern"] for note in notes] == ["2:4", "25%"]


def test_an_expert_without_tokens_keeps_its_weights(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "mixtral")

    def starve(held: dict[str, Tensor]) -> None:
        """Let the first dimension be large in every token, and the router shun it for expert 1."""
        held["model.embed_tokens.weight"][:, 0] = 30.0
        held["model.layers.0.post_attention_layernorm.weight"][0] = 1.0
        (router,) = (
            name for name in held if name.startswith("model.layers.0.") and ".gate." in name
        )
        held[router][1] = 0.0
        held[router][1, 0] = -100.0

    change_tensors(source, starve)
    small = shrink(asked(source, "sparsify"), tmp_path / "small")
    before, after = maps(load(source)), maps(load(small))
    starved = [f"model.layers.0.mlp.experts.1.{part}" for part in ("gate_up", "down")]
    left = note(small)["without_tokens"]
    assert set(starved) <= set(left)
    assert note(small)["sites"] == len(after) - len(left) > len(after) / 2
    for name in after:
        assert torch.equal(after[name], before[name]) == (name in left), name


def test_the_same_bits_twice_and_from_the_cache(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama", dtype=torch.bfloat16)
    stage = {"sparsify": {"pattern": "4:8", "update": True}}
    made = []
    for place in ("one", "other", "other"):
        (tmp_path / place).mkdir(exist_ok=True)
        made.append(files(shrink(asked(source, stage), tmp_path / place / "small")))
    assert made[0] == made[1] == made[2]
    assert len(kept(tmp_path / "other" / "cache", "models")) == 1
    assert {tensor.dtype for tensor in stored(tmp_path / "one" / "small").values()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize("made", ["mixtral"], indirect=True)
def test_it_loads_where_there_is_no_spectrim(made: Made) -> None:
    program = (
        "import sys, transformers\n"
        "sys.modules['spectrim'] = None\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "experts = model.model.layers[2].mlp.experts.down_proj\n"
        "print(float((experts == 0).float().mean()))\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(made.small)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "0.5"


def test_the_report_counts_zeros_and_calls_them_no_saving(tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    with quiet():
        small = whole_shrink(
            asked(source, {"sparsify": {"pattern": "1:4"}}),
            tmp_path / "small",
            cache=tmp_path / "cache",
        )
    scores = json.loads((small / "scores.json").read_text())
    dense, sparse = scores["rows"][:2]
    assert (dense["zeros"]["value"], sparse["zeros"]["value"]) == (0.0, 0.75)
    for size in ("numbers", "linear_numbers", "bytes_on_disk", "bytes_in_memory"):
        assert sparse[size]["value"] == dense[size]["value"]
    assert any("nothing was saved" in said for said in scores["warnings"])
    page = (small / "report.html").read_text()
    assert "zeros among them, stored all the same" in page
    assert "1:4 of the weights were kept (chosen by wanda)" in page


# bad input


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        (
            [{"sparsify": {"pattern": "5:10"}}],
            "model.layers.0.self_attn.q_proj has 48 inputs, which groups of 10 do not divide; "
            "take another pattern than '5:10', or protect it",
        ),
        (
            [{"sparsify": {"update": True, "score": "magnitude"}}],
            "with update, sparsify drops what SparseGPT's update can best make up for, not the "
            "smallest; leave out score: magnitude, or update",
        ),
        (
            [{"sparsify": {"protect": ["."]}}],
            "every linear map is protected from sparsify; protect fewer",
        ),
        (
            [{"factorize": {"refine": "off"}}, "sparsify"],
            "sparsify needs dense weights, and an earlier stage has cut them; put sparsify first",
        ),
    ],
    ids=["groups", "score", "protected", "order"],
)
def test_what_cannot_be_is_said_in_a_line(stages: list[object], said: str, tmp_path: Path) -> None:
    source = family_folder(tmp_path / "source", "llama")
    with pytest.raises(SpectrimError) as caught:
        shrink(asked(source, *stages, keep="70% of linear"), tmp_path / "small")
    assert str(caught.value) == said
    assert not (tmp_path / "small").exists()
