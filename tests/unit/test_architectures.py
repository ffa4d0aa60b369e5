"""The table of model families: complete, alive, and readable without torch."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from spectrim.errors import SpectrimError
from spectrim.model.architectures import ARCHITECTURES, architecture_of
from tiny_models import FAMILIES, build, build_empty, logits, model_type, tokens

torch.set_num_threads(1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_entry_is_a_model_type_of_transformers(name: str) -> None:
    assert architecture_of(AutoConfig.for_model(name)) is ARCHITECTURES[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_is_where_the_table_says(family: str) -> None:
    model = build_empty(family)
    architecture = architecture_of(model.config)
    assert model.get_submodule(architecture.head) is model.get_output_embeddings()
    assert model.get_submodule(architecture.embed) is model.get_input_embeddings()
    for stack in architecture.stacks:
        assert isinstance(model.get_submodule(stack.path), torch.nn.ModuleList)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_entry_has_a_path_that_no_model_uses(name: str) -> None:
    architecture = ARCHITECTURES[name]
    unused = {*architecture.roles, *filter(None, [architecture.experts])}
    for family in FAMILIES:
        if model_type(family) == name:
            model = build_empty(family)
            for stack in architecture.stacks:
                for block in model.get_submodule(stack.path):
                    unused -= dict(block.named_modules()).keys()
    assert unused == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_bias_is_said_of_the_families_whose_blocks_pass_a_bias_on(family: str) -> None:
    model = build_empty(family)
    architecture = architecture_of(model.config)
    block = model.get_submodule(architecture.stacks[0].path)[0]
    passes_on = "position_bias" in inspect.signature(type(block).forward).parameters
    assert architecture.shared_bias == passes_on


@pytest.mark.parametrize("family", FAMILIES)
def test_returns_tuple_is_said_of_the_families_whose_blocks_do(family: str) -> None:
    model = build(family)
    architecture = architecture_of(model.config)
    returned: list[object] = []
    for stack in architecture.stacks:
        for block in model.get_submodule(stack.path):
            block.register_forward_hook(lambda *call: returned.append(call[-1]))
    logits(model, tokens())
    assert {isinstance(output, tuple) for output in returned} == {architecture.returns_tuple}


def test_an_unknown_model_type_is_answered_with_the_known_ones() -> None:
    """Not with the nearest name: a file says it, and phi3 is no mistake for phi."""
    with pytest.raises(SpectrimError) as caught:
        architecture_of(SimpleNamespace(model_type="phi3"))
    message = str(caught.value)
    assert message.startswith("model type 'phi3' is not supported; supported are bart, ")
    assert "\n" not in message
    assert all(name in message for name in ARCHITECTURES)


def test_a_model_of_images_and_text_is_answered_with_its_text_part() -> None:
    line = "'gemma3' is not supported; 'gemma3_text', its language model alone, is; supported are"
    with pytest.raises(SpectrimError, match=line):
        architecture_of(SimpleNamespace(model_type="gemma3"))


def test_a_config_without_a_model_type_is_answered_too() -> None:
    with pytest.raises(SpectrimError, match="model type '' is not supported; supported are bart,"):
        architecture_of(SimpleNamespace())


def test_the_table_is_read_without_torch() -> None:
    code = "import spectrim.model.architectures, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
