"""ONNX exports that cannot be made or run are refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnx_ir", reason="pip install 'spectrim[export]'")

from spectrim.engines.onnxruntime import OnnxRuntime, onnxruntime
from spectrim.errors import SpectrimError
from spectrim.exporters import onnx as exporter
from spectrim.exporters.onnx import onnx
from tiny_folders import change_config, tiny_folder


def folder_of(path: Path, family: str = "llama") -> Path:
    return tiny_folder(path, family, head_dim=16)


def exported(source: Path, output: Path) -> OnnxRuntime:
    output.mkdir()
    onnx(source, output)
    return onnxruntime(output, 1, 32)


def test_what_has_no_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpectrimError, match=r"model type 'gpt2' has no ONNX form here; it has"):
        onnx(tiny_folder(tmp_path / "gpt2", "gpt2"), tmp_path)
    with pytest.raises(SpectrimError, match=r"heads of 12 dimensions .* multiples of 8"):
        onnx(tiny_folder(tmp_path / "llama", "llama"), tmp_path)
    source = folder_of(tmp_path / "mistral", "mistral")
    change_config(source, hidden_act="relu")
    with pytest.raises(SpectrimError, match=r"activation 'relu' has no ONNX form"):
        onnx(source, tmp_path)
    change_config(
        source,
        hidden_act="silu",
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )
    with pytest.raises(SpectrimError, match=r"type 'dynamic' change with the length"):
        onnx(source, tmp_path)


def test_what_cannot_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpectrimError, match=r"has no model.onnx; expected a folder that"):
        onnxruntime(tmp_path, 1, 8)
    running = exported(folder_of(tmp_path / "dense"), tmp_path / "onnx")
    running.feed([5] * 30)
    with pytest.raises(SpectrimError, match=r"33 tokens do not fit into a context of 32"):
        running.feed([5, 6, 7])
    assert onnxruntime(tmp_path / "onnx", 1, 65).context == 64  # the model's positions
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"nonsense")
    with pytest.raises(SpectrimError, match=r"cannot load .*; export it again"):
        onnxruntime(tmp_path / "onnx", 1, 8)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is damaged; export it again"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json is damaged; export it again"),
        ("genai_config.json", b"{", "genai_config.json gives no context_length; export it again"),
        ("genai_config.json", b"[]", "genai_config.json gives no context_length; export it again"),
        ("genai_config.json", b'{"model": {"context_length": -1}}', "gives no context_length"),
        ("model.onnx.data", b"", "ONNX Runtime cannot load .*; export it again"),
    ],
)
def test_a_damaged_folder_is_refused(
    export: Path, tmp_path: Path, name: str, content: bytes, line: str
) -> None:
    folder = shutil.copytree(export, tmp_path / "damaged")
    (folder / name).write_bytes(content)
    with pytest.raises(SpectrimError, match=line):
        onnxruntime(folder, 1, 8)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damaged")
    exported(folder_of(folder / "dense"), folder / "onnx").close()
    return folder / "onnx"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    with pytest.raises(SpectrimError, match=r"onnx_ir and onnxruntime; run `pip install"):
        exporter.needed()
