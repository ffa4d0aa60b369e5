"""`spectrim export`: an ordinary folder, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spectrim.cli.main import main
from spectrim.errors import SpectrimError
from spectrim.exporters.dense import dense
from spectrim.formats import make_format
from spectrim.formats.autoencoder import Autoencoder
from spectrim.recipe.recipe import Recipe
from spectrim.verbs.export import export
from tiny_exports import exportable, in_formats, narrower, saved
from tiny_models import build, logits, tokens
from tiny_runs import load, shrink, write_text

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
ids = torch.load(sys.argv[1])
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[2], output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
torch.save(model(ids, use_cache=False).logits, sys.argv[3])
assert "spectrim" not in sys.modules
"""


def test_a_folder_of_any_formats_loads_without_spectrim(tmp_path: Path) -> None:
    model = narrower(build("llama"), [80, 64, 40])
    weight = model.model.layers[0].self_attn.v_proj.weight.detach().double()
    left, right = weight[:, :8], torch.randn(8, weight.shape[1]).double()
    bias = torch.randn(weight.shape[0])
    factored = make_format("pivoted", (*weight.shape, 8), {"left": left, "right": right}, bias,
                           torch.float32)  # fmt: skip
    sites = {**model.config.quantization_config.sites}
    in_formats(model, {"model.layers.0.self_attn.v_proj": factored})
    model.config.quantization_config.sites |= sites
    folder = saved(tmp_path / "model", model)
    told = export(str(folder), "dense", tmp_path / "plain", cache=tmp_path / "cache")
    assert "2 of 3 MLPs are narrower than 80 neurons" in told[0]
    torch.save(tokens(), tmp_path / "ids.pt")
    command = [sys.executable, "-W", "error", "-c", PLAIN, tmp_path / "ids.pt",
               tmp_path / "plain", tmp_path / "logits.pt"]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)
    expected = logits(load(folder), tokens())
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["attention_bias"] is True
    assert (tmp_path / "plain" / "tokenizer.json").is_file()


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "falcon_new", "bart"])
def test_a_folder_of_other_families_holds_the_same(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", build(family))
    (tmp_path / "plain").mkdir()
    told = dense(folder, tmp_path / "plain", None)
    assert "as many as in the folder" in told[-1]
    assert torch.equal(logits(load(folder), tokens()), logits(load(tmp_path / "plain"), tokens()))


def test_blocks_that_are_stored_once_are_written_out(tmp_path: Path) -> None:
    folder = exportable(tmp_path / "model")
    text = write_text(tmp_path / "text.txt")
    stages = [{"drop_blocks": {"layers": ["0-1", "1-2"]}}]
    changes = {"model": str(folder), "stages": stages, "calibration.text": str(text),
               "calibration.tokens": "12x32"}  # fmt: skip
    small = shrink(Recipe.build(None, changes), tmp_path / "small")
    (tmp_path / "plain").mkdir()
    told = dense(small, tmp_path / "plain", None)
    assert "more than" in told[-1]
    model = load(tmp_path / "plain")
    assert len(model.model.layers) == 4
    assert torch.equal(logits(load(small), tokens()), logits(model, tokens()))


def test_parts_lie_in_the_output_which_a_killed_run_leaves_to_the_next(tmp_path: Path) -> None:
    folder = exportable(tmp_path / "model")
    (tmp_path / "plain").mkdir()
    during: list[set[str]] = []
    dense(folder, tmp_path / "plain", lambda *_: during.append(set(os.listdir(tmp_path))))
    assert during and all(names == {"model", "plain"} for names in during)
    assert not [path for path in (tmp_path / "plain").iterdir() if path.is_dir()]


def test_an_autoencoder_is_refused(tmp_path: Path) -> None:
    model = build("llama")
    module = Autoencoder(48, 80, 4, False)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    folder = saved(tmp_path / "m", in_formats(model, {"model.layers.0.mlp.up_proj": module}))
    with pytest.raises(SpectrimError, match="autoencoder, which stands for no matrix"):
        dense(folder, tmp_path, None)


def test_outputs_of_others_are_refused_before_any_work(tmp_path: Path) -> None:
    folder = exportable(tmp_path / "model")
    theirs = tmp_path / "x.gguf"
    theirs.write_bytes(b"GGUF of somebody else")
    notes = tmp_path / "notes.txt"
    notes.write_text("how I made it: spectrim export small/ --to gguf")
    with pytest.raises(SpectrimError, match="was not written by spectrim"):
        export(str(folder), "gguf", notes, cache=tmp_path / "cache")
    with pytest.raises(SpectrimError, match="was not written by spectrim"):
        export(str(folder), "gguf", theirs, cache=tmp_path / "cache")
    ours = tmp_path / "y.gguf"
    for _ in range(2):  # the second replaces the first
        export(str(folder), "gguf", ours, cache=tmp_path / "cache")
    with pytest.raises(SpectrimError, match="holds the model|is the model"):
        export(str(folder), "dense", folder, cache=tmp_path / "cache")
    assert theirs.read_bytes() == b"GGUF of somebody else"


def test_the_command_writes_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exportable(tmp_path / "model")
    common = ["--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "x.gguf")]
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), "--to", "gguf", *common])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "of weights" in said and "wrote" in said
    with pytest.raises(SystemExit) as ended:
        main(["export", str(folder), "--to", "ggf", *common])
    assert ended.value.code == 2 and "did you mean 'gguf'" in capsys.readouterr().err
