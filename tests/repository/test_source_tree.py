"""Promises about the source tree itself."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import spectrim
from spectrim.recipe.recipe import Recipe
from spectrim.registry import Registry

KINDS = {
    "method": "spectrim.methods",
    "format": "spectrim.formats",
    "allocator": "spectrim.allocators",
    "metric": "spectrim.metrics",
    "stage": "spectrim.stages",
}
PLUG_INS = [(kind, name) for kind, at in KINDS.items() for name in Registry(kind, at).names()]


def python(code: str) -> str:
    """Return what a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def modules() -> list[str]:
    """Return the dotted names of all modules of the package."""
    return [info.name for info in pkgutil.walk_packages(spectrim.__path__, "spectrim.")]


def loads_transformers(name: str) -> bool:
    """Return whether a module's own text imports transformers when it is imported."""
    file = importlib.util.find_spec(name).origin
    body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    return any(
        isinstance(line, ast.ImportFrom) and (line.module or "").startswith("transformers")
        for line in body
    )


def test_shapes_are_checked_in_tests():
    import torch
    from jaxtyping import TypeCheckError

    from spectrim.formats import from_factors

    left, right = torch.zeros(4, 2), torch.zeros(2, 3)
    assert from_factors("low_rank", left, right, None, torch.float32).dense().shape == (4, 3)
    with pytest.raises(TypeCheckError):
        from_factors("low_rank", left, right.T, None, torch.float32)


def test_no_source_file_is_longer_than_300_lines(root):
    long = {
        str(file.relative_to(root)): lines
        for file in sorted((root / "src").rglob("*.py"))
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 300
    }
    assert long == {}


@pytest.mark.parametrize(
    "module", ["spectrim", "spectrim.cli.main", "spectrim.recipe.recipe", "spectrim.cli.console"]
)
def test_importing_what_answers_at_once_loads_nothing_heavy(module):
    heavy = "{'torch', 'transformers', 'numpy', 'datasets', 'pandas'} & set(sys.modules)"
    assert python(f"import sys, {module}; print(sorted({heavy}))") == "[]"


def test_reports_load_no_torch():
    names = [name for name in modules() if name.startswith("spectrim.report")]
    assert python(f"import sys, {', '.join(names)}; print('torch' in sys.modules)") == "False"


def test_every_public_name_is_there():
    assert spectrim.__all__ == sorted(spectrim.__all__)
    assert set(spectrim._HOMES) | {"__version__"} == set(spectrim.__all__)
    for name in spectrim.__all__:
        assert getattr(spectrim, name) is not None
    assert dir(spectrim) == spectrim.__all__
    with pytest.raises(AttributeError, match="module 'spectrim' has no attribute 'shrnk'"):
        _ = spectrim.shrnk


@pytest.mark.parametrize(("kind", "name"), PLUG_INS)
def test_every_plug_in_resolves_and_says_what_it_is(kind, name):
    package = importlib.import_module(KINDS[kind])
    registry = getattr(package, KINDS[kind].rpartition(".")[2])
    assert callable(registry.get(name))
    assert registry.summary(name).endswith((".", ":")), "a docstring begins with a sentence"


def test_every_kind_has_plug_ins():
    assert {kind for kind, _ in PLUG_INS} == set(KINDS)


def test_every_recipe_is_valid_and_says_what_it_is_for(root):
    files = sorted((root / "recipes").glob("*.yaml"))
    assert {file.stem for file in files} >= {"default", "svd_llm", "plain_svd"}
    for file in files:
        Recipe.from_yaml(file)
        assert file.read_text(encoding="utf-8").startswith("# "), file


def test_the_default_recipe_is_the_default(root):
    assert Recipe.from_yaml(root / "recipes" / "default.yaml") == Recipe(model="demo")


REGISTERED = (
    "from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known; "
    "print('spectrim' in known)"
)


@pytest.mark.parametrize(
    "first",
    [
        "import spectrim; from transformers import AutoModelForCausalLM, PreTrainedModel",
        "from transformers import PreTrainedModel; import spectrim",
        "import spectrim, transformers.modeling_utils",
    ],
)
def test_transformers_knows_our_checkpoints_after_the_import(first):
    assert python(f"{first}; {REGISTERED}") == "True"


def test_every_module_that_loads_transformers_may_be_the_first_one():
    # One process loads what takes long and is not ours; each module is tried in a copy of it.
    names = [name for name in modules() if loads_transformers(name)]
    assert "spectrim.model.sites" in names
    broken = python(
        "import os, sys, accelerate, scipy.optimize, torch._dynamo, torch.distributed.tensor\n"
        "from transformers import AutoConfig, AutoTokenizer\n"
        "assert 'transformers.modeling_utils' not in sys.modules\n"
        f"for name in {names}:\n"
        "    child = os.fork()\n"
        "    if child:\n"
        "        if os.waitpid(child, 0)[1]: print(name)\n"
        "        continue\n"
        "    __import__(name)\n"
        "    import transformers.modeling_utils\n"
        "    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING\n"
        "    os._exit('spectrim' not in AUTO_QUANTIZER_MAPPING)\n"
    )
    assert broken == ""
