"""Models of the hub: only what is needed is asked for, and every way to fail has its line."""

from __future__ import annotations

import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from spectrim.errors import SpectrimError
from spectrim.model import hub
from spectrim.model.tensor_files import INDEX

NAME = "someone/some-model"
WANTED = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE",
]
UNWANTED = [
    "pytorch_model.bin",
    "model.pt",
    "weights.pkl",
    "tf_model.h5",
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "onnx/model.onnx",
    "modeling_some.py",
]


def http(kind: type[HfHubHTTPError]) -> HfHubHTTPError:
    answer: Any = SimpleNamespace(headers={}, request=None)
    return kind("first line\nsecond line", response=answer)


def answering(answer: Path | Exception, asked: dict[str, Any]) -> Callable[..., str]:
    """Return a stand-in for snapshot_download that notes what it is asked for."""

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    return download


def test_only_what_is_needed_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    asked: dict[str, Any] = {}
    monkeypatch.setattr(hub, "snapshot_download", answering(tmp_path, asked))
    assert hub.fetch(NAME, revision="v2") == tmp_path
    assert (asked["name"], asked["revision"]) == (NAME, "v2")

    def allowed(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in asked["patterns"])

    assert [file for file in WANTED if not allowed(file)] == []
    assert [file for file in UNWANTED if allowed(file)] == []
    hub.fetch(NAME, trust_remote_code=True)
    assert [file for file in UNWANTED if allowed(file)] == ["modeling_some.py"]


def test_shards_of_any_name_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {"a": "model.safetensors-00001-of-00002.safetensors", "b": "part-b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    asked: dict[str, Any] = {}
    monkeypatch.setattr(hub, "snapshot_download", answering(tmp_path, asked))
    hub.fetch(NAME)
    assert set(shards.values()) <= set(asked["patterns"]) and "config.json" in asked["patterns"]
    for name in shards.values():
        (tmp_path / name).write_bytes(b"")
    hub.fetch(NAME)
    assert not set(shards.values()) & set(asked["patterns"])  # what is there is asked for once


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (http(GatedRepoError), f"'{NAME}' is gated; accept its licence on https://huggingface.co/"),
        (http(RepositoryNotFoundError), f"there is no model '{NAME}'; expected 'demo', a folder"),
        (HFValidationError("bad name"), f"there is no model '{NAME}'; expected 'demo', a folder"),
        (http(RevisionNotFoundError), f"'{NAME}' has no revision 'v2'"),
        (
            LocalEntryNotFoundError("offline"),
            "and huggingface.co cannot be reached; connect",
        ),
        (http(HfHubHTTPError), rf"'{NAME}' could not be fetched \(first line\); try again"),
        (TimeoutError(), rf"'{NAME}' could not be fetched \(TimeoutError\); try again"),
    ],
)
def test_why_a_model_is_not_fetched(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "snapshot_download", answering(error, {}))
    with pytest.raises(SpectrimError, match=line) as raised:
        hub.fetch(NAME, revision="v2")
    assert "\n" not in str(raised.value)


def test_a_model_with_nothing_but_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "snapshot_download", answering(tmp_path, {}))
    listed = ["config.json", "pytorch_model.bin"]
    monkeypatch.setattr(hub, "list_repo_files", lambda name, revision: listed)
    with pytest.raises(SpectrimError, match=f"'{NAME}' has its weights only as a pickle"):
        hub.fetch(NAME)


def test_a_model_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, revision: str | None) -> list[str]:
        raise OSError("offline")

    monkeypatch.setattr(hub, "snapshot_download", answering(tmp_path, {}))
    monkeypatch.setattr(hub, "list_repo_files", fail)
    with pytest.raises(SpectrimError, match=f"'{NAME}' has no weights; expected model.safetensors"):
        hub.fetch(NAME)


def test_a_slip_in_the_name_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (http(RepositoryNotFoundError), LocalEntryNotFoundError("offline")):
        monkeypatch.setattr(hub, "snapshot_download", answering(error, {}))
        with pytest.raises(SpectrimError, match="'dmeo'.*; did you mean 'demo'"):
            hub.fetch("dmeo")
        with pytest.raises(SpectrimError) as raised:
            hub.fetch("gpt2")
        assert "did you mean" not in str(raised.value)


def test_offline_a_model_that_is_not_here_is_one_line() -> None:
    with pytest.raises(SpectrimError, match="huggingface.co cannot be reached") as error:
        hub.fetch("nobody-of-this-name/no-such-model")
    assert "\n" not in str(error.value)
