"""What a job writes: config, weights, tokenizer, and the record of what was decided."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from spectrim.job import stock
from spectrim.job.job import Job
from spectrim.job.remake import copy_companions
from spectrim.job.repeats import repeats, written_out
from spectrim.model import checkpoint
from spectrim.recipe.recipe import Recipe
from spectrim.text.tokens import fingerprints


def write_model(job: Job, folder: Path) -> None:
    """Write config, weights and tokenizer, streaming the weights from the blocks' files."""
    assert job.plan is not None
    config = json.loads((job.source.folder / "config.json").read_text())
    widths = {} if job.ends else stock.widths(job)
    factored = job.ends | {
        decision.site: {"format": decision.stored_as, **job.empty_format(decision).shape()}
        for decision in job.plan.decisions
        if decision.replaced and decision.block >= 0
    }
    shared = repeats(job)
    if job.blocks is None and not shared:  # no stage cut anything
        for path in job.source.folder.glob("*.safetensors*"):
            shutil.copyfile(path, folder / path.name)
    else:
        blocks = written_out(job)
        rest = job.work / "rest.safetensors"
        save_file(job.rest(), rest)
        places = [at for at in job.each_block() if at.name not in shared]
        parts = [job.block_file(blocks, place) for place in places]
        parts = [rest, *([stock.plain(job, part) for part in parts] if widths else parts)]
        with tempfile.TemporaryDirectory(dir=job.work) as coded:
            checkpoint.write_shards(
                [checkpoint.entropy_coded(part, Path(coded) / part.name) for part in parts], folder
            )
    if widths:
        config |= widths
        factored = {}
    if factored:
        config.pop("sparsified", None)  # factors hold no zeros
    if factored or shared:
        said = checkpoint.SpectrimConfig(factored, shared_blocks=shared)
        config["quantization_config"] = said.to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    copy_companions(job.source.folder, folder)


def write_record(job: Job, recipe: Recipe, folder: Path) -> None:
    """Write the recipe, the plan and the curves that led to it."""
    assert job.plan is not None
    recorded = dataclasses.replace(
        job.plan,
        about={
            **job.plan.about,
            "recipe": recipe.model_dump(mode="json"),
            "refined": job.refined,
            "found": found(job),
        },
    )
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    (folder / "plan.json").write_text(recorded.to_json(), encoding="utf-8")
    (folder / "curves.json").write_text(json.dumps(job.curves), encoding="utf-8")
    used = torch.cat([fingerprints(job.splits.calibration), fingerprints(job.splits.search)])
    (folder / "calibration.json").write_text(
        json.dumps({"text": job.text, "fingerprints": used.tolist()}),
        encoding="utf-8",
    )


def found(job: Job) -> dict[str, Any]:
    """Return what the stages noted: what was dropped, what an allocation cost, and the like.

    Of a plan that is replayed, what it says itself and no stage found anew holds on.
    """
    before = job.plan.about.get("found") or {} if job.plan else {}
    return {**before, **job.notes}
