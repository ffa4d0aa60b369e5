"""`spectrim bench`: one process a model, rounds in turn, one table."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from spectrim.cli.main import app
from spectrim.errors import SpectrimError
from spectrim.exporters.gguf import gguf
from spectrim.verbs import traffic
from spectrim.verbs.bench import Work, bench
from spectrim.verbs.runnable import runnable
from spectrim.verbs.traffic import weights
from tiny_exports import exportable
from tiny_folders import tiny_folder
from tiny_runs import load

WORK = Work(prompt=12, new=3, rounds=2)


@pytest.fixture(autouse=True)
def _little_memory_is_read(monkeypatch):
    monkeypatch.setattr(traffic, "_BYTES", 2**24)


def test_models_are_timed_and_compared(tmp_path, capsys):
    folder = tiny_folder(tmp_path / "tiny")
    other = tiny_folder(tmp_path / "other", "gpt2")
    file = tmp_path / "bench.json"
    asked = ["bench", str(folder), "--against", str(other), "--prompt", "12", "--new", "3",
             "--rounds", "2", "--threads", "1", "--json", str(file)]  # fmt: skip
    shown = CliRunner().invoke(app, asked, catch_exceptions=False).output
    found = json.loads(file.read_text())
    first, second = found["rows"]
    assert (first["model"], second["model"]) == ("other", "tiny")
    assert first["decode_ratio"] == 1
    assert second["decode_ratio"] == pytest.approx(second["decode"] / first["decode"])
    for row in found["rows"]:
        assert len(row["decode_rounds"]) == len(row["prefill_rounds"]) == 2
        # The product of two medians: never below, and above as far as the rounds differ.
        assert row["first_token"] * row["prefill"] > 11.99
        assert row["peak_memory"] > 50e6  # torch is in it
    assert found["settings"]["bandwidth"] > 1e8
    assert "tiny" in shown and "transformers" in shown


@pytest.mark.parametrize(("tie", "leaves_out"), [(True, 0), (False, 1)])
def test_decoding_reads_all_but_an_embedding_that_is_no_head(tmp_path, tie, leaves_out):
    folder = tiny_folder(tmp_path / "tiny", tie=tie)
    tensors = load_file(folder / "model.safetensors")
    all_of_it = sum(one.nbytes for one in tensors.values())
    table = tensors["model.embed_tokens.weight"].nbytes
    found = weights(runnable(str(folder)))
    assert found.token == all_of_it - leaves_out * table
    assert found.disk == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("work", "threads", "says"),
    [
        (Work(prompt=0), 1, "--prompt, --new and --rounds are to be 1 or more"),
        (WORK, 0, "--threads 0 runs nothing"),
    ],
)
def test_what_cannot_be_timed_is_refused(tmp_path, work, threads, says):
    folder = tiny_folder(tmp_path / "tiny")
    with pytest.raises(SpectrimError, match=says):
        bench([str(folder)], None, work, threads=threads)


def test_a_bad_model_is_told_before_any_is_loaded(tmp_path, monkeypatch):
    folder, file = tiny_folder(tmp_path / "tiny"), tmp_path / "cut.gguf"
    gguf(exportable(tmp_path / "whole"), file, None)
    file.write_bytes(file.read_bytes()[:-1000])
    monkeypatch.setattr("spectrim.verbs.bench.Runtime", None)
    with pytest.raises(SpectrimError, match=r"cut\.gguf is damaged or cut off"):
        bench([str(folder), str(file)], None, WORK, threads=1)


def test_more_tokens_than_positions_are_refused_before_the_rounds(tmp_path):
    file = tmp_path / "short.gguf"
    gguf(exportable(tmp_path / "whole"), file, None)
    positions = load(tmp_path / "whole").config.max_position_embeddings
    with pytest.raises(SpectrimError, match=f"has {positions} positions; give a shorter --prompt"):
        bench([str(file)], None, Work(prompt=positions, new=1), threads=1)


def test_a_process_that_dies_is_told(tmp_path, monkeypatch):
    folder = tiny_folder(tmp_path / "tiny")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text("import os, sys; os.write(2, b'boom'); os._exit(3)")
    with pytest.raises(SpectrimError, match="tiny could not be run: boom"):
        bench([str(folder)], None, WORK, threads=1)


def test_nothing_runs_a_folder_without_weights(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpectrimError, match="nothing here runs"):
        runnable(str(tmp_path / "empty"))
