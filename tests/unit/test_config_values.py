"""Values of config.json that no model can have: one line, before memory is taken for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrim.errors import SpectrimError
from spectrim.model import sources
from tiny_folders import change_config, tiny_folder

HUGE = 10**9
NAN, INFINITE = float("nan"), float("inf")
YARN = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 100_000}, "num_hidden_layers is 100000, with 30 tensors in the files"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"hidden_size": HUGE}, "hidden_size is 1000000000, with at most 5376 numbers in a tensor of"),
    ({"hidden_size": 4000}, "hidden_size make an embedding of 448000 numbers, with at most 5376"),
    ({"vocab_size": HUGE}, "vocab_size is 1000000000"),
    ({"intermediate_size": -1}, "intermediate_size is -1"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ({"head_dim": HUGE}, "head_dim is 1000000000"),
    ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
    ({"pad_token_id": 999}, "makes no model .AssertionError: Padding_idx must be within"),
    ({"rms_norm_eps": NAN}, "rms_norm_eps is nan, expected 0 to 1"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ({"rms_norm_eps": INFINITE}, "rms_norm_eps is inf"),
    ({"rope_parameters": YARN | {"factor": "four"}}, "factor of its rotary positions is 'four'"),
    ({"rope_parameters": YARN | {"factor": -4.0}}, "factor of its rotary positions is -4.0"),
    ({"rope_parameters": YARN | {"rope_theta": NAN}}, "rope_theta of its rotary positions is nan"),
    ({"rope_parameters": YARN | {"rope_type": "linear", "factor": 0}}, "positions is 0, expected"),
    ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "none"}}, "makes no model .KeyError: "),
    ({"hidden_act": "relu9"}, "makes no model .KeyError: 'relu9'"),
    ({"quantization_config": "4 bits"}, "a quantization_config that is no object"),
    ({"hidden_size": "wide"}, "expected int, got str"),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("made") / "model")


@pytest.mark.parametrize(("values", "line"), BAD, ids=[str(values) for values, _ in BAD])
def test_a_value_that_no_model_has(
    made: Path, tmp_path: Path, values: dict[str, Any], line: str
) -> None:
    folder = shutil.copytree(made, tmp_path / "model")
    change_config(folder, **values)
    with pytest.raises(SpectrimError, match=line) as error:
        sources.resolve(str(folder), tmp_path / "cache")
    assert str(error.value).startswith(str(folder / "config.json"))
    assert "\n" not in str(error.value)


def test_an_end_beyond_the_vocabulary_never_comes(made: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(made, tmp_path / "model")
    change_config(folder, eos_token_id=50256, bos_token_id=50256)
    source = sources.resolve(str(folder), tmp_path / "cache")
    model = sources.model(source)
    written = model.generate(torch.tensor([[5, 6]]), max_new_tokens=4, do_sample=False)
    assert written.shape == (1, 6)
