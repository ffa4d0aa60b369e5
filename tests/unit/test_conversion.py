"""Conversions into the cache: wholly there or not at all, made once, refused with one line."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from spectrim.errors import SpectrimError
from spectrim.model import conversion
from spectrim.model.sources import Weights, resolve
from tiny_folders import change_tensors, tiny_folder


def write_one(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_a_folder_is_written_once(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = conversion.once(cache, "key", write_one)
    assert (first / "file").read_text() == "whole"
    assert conversion.once(cache, "key", lambda folder: pytest.fail("again")) == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_processes_that_write_the_same_at_the_same_time(tmp_path: Path) -> None:
    started: list[Path] = []

    def write(folder: Path) -> None:
        started.append(folder)
        while len(started) < 3:
            time.sleep(0.001)
        write_one(folder)

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(conversion.once, tmp_path, "key", write) for _ in range(3)]
        (target,) = {job.result() for job in jobs}
    assert len(set(started)) == 3
    assert (target / "file").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("existed", [False, True])
def test_a_failed_conversion_leaves_nothing(tmp_path: Path, existed: bool) -> None:
    cache = tmp_path / "cache"
    if existed:
        cache.mkdir()

    def fail(folder: Path) -> None:
        write_one(folder)
        raise OSError(28, "No space left on device")

    line = r"cannot be written to .*models \(.*No space left on device\); make room there or"
    with pytest.raises(SpectrimError, match=line):
        conversion.once(cache, "key", fail)
    assert cache.exists() == existed
    assert not list(cache.rglob("*"))


def test_a_cache_that_is_no_folder(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.write_text("a file")
    with pytest.raises(SpectrimError, match="the model cannot be written to"):
        conversion.once(cache, "key", write_one)
    assert cache.read_text() == "a file"


def test_until_the_last_moment_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(beside: Path, target: Path) -> None:
        assert (beside / "file").read_text() == "whole"
        assert not target.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversion.once(tmp_path / "cache", "key", write_one)
    assert not (tmp_path / "cache").exists()


def test_what_a_killed_run_left_is_swept(tmp_path: Path) -> None:
    old, new = tmp_path / "models" / ".half-old", tmp_path / "models" / ".half-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
        write_one(folder)
    os.utime(old, (0, 0))
    conversion.once(tmp_path, "key", write_one)
    assert not old.exists()
    assert new.exists()


def test_a_mixture_that_lacks_a_tensor(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral")

    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]

    change_tensors(folder, drop)
    with pytest.raises(SpectrimError, match="lacks 1 of the model's tensors, 'model.norm.weight'"):
        resolve(str(folder), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_mixture_with_a_tensor_of_another_shape(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral")
    change_tensors(folder, lambda tensors: tensors | {"model.norm.weight": torch.ones(47)})
    with pytest.raises(SpectrimError, match="do not fit its config.json") as error:
        resolve(str(folder), tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_rearranged_model_stays_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral")
    monkeypatch.setattr(conversion, "SHARD", "50KB")
    source = resolve(str(folder), tmp_path / "cache")
    assert len(list(source.folder.glob("model-*-of-*.safetensors"))) > 2
    assert Weights(source.folder).names()
