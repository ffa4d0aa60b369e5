"""Makes pre-trained language models smaller by loss-aware factorisation.

Importing this package is all that `transformers` needs to read what it writes:

    import spectrim
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("small/")

The import itself is light: torch and transformers are loaded on first use of a public name.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from spectrim.version import __version__

if TYPE_CHECKING:
    from spectrim.errors import SpectrimError
    from spectrim.formats import FactoredLinear
    from spectrim.methods import Decomposition
    from spectrim.model import sources
    from spectrim.model.sites import Site
    from spectrim.plan import Plan
    from spectrim.recipe.recipe import Recipe
    from spectrim.verbs.evaluate import evaluate
    from spectrim.verbs.inspect import inspect
    from spectrim.verbs.shrink import shrink_from_options as shrink
    from spectrim.walk.statistics import Statistics


__all__ = [
    "Decomposition",
    "FactoredLinear",
    "Plan",
    "Recipe",
    "Site",
    "SpectrimError",
    "Statistics",
    "__version__",
    "evaluate",
    "inspect",
    "shrink",
    "sources",
]

# Public name → where it lives: "module" itself, or "module:attribute".
_HOMES = {
    "Decomposition": "spectrim.methods:Decomposition",
    "FactoredLinear": "spectrim.formats:FactoredLinear",
    "Plan": "spectrim.plan:Plan",
    "Recipe": "spectrim.recipe.recipe:Recipe",
    "Site": "spectrim.model.sites:Site",
    "SpectrimError": "spectrim.errors:SpectrimError",
    "Statistics": "spectrim.walk.statistics:Statistics",
    "evaluate": "spectrim.verbs.evaluate:evaluate",
    "inspect": "spectrim.verbs.inspect:inspect",
    "shrink": "spectrim.verbs.shrink:shrink_from_options",
    "sources": "spectrim.model.sources",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'spectrim' has no attribute '{name}'")
    home, _, attribute = _HOMES[name].partition(":")
    module = importlib.import_module(home)
    found = getattr(module, attribute) if attribute else module
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)


def _register_checkpoint(loaded: ModuleType) -> None:
    # While the sites are what loads transformers, the checkpoint, which needs them, has to
    # wait for them.
    if loaded.__name__ == _SITES or _SITES not in sys.modules:
        importlib.import_module("spectrim.model.checkpoint")


_SITES = "spectrim.model.sites"
# from_pretrained lives in this module, so the format is known before anything can be loaded; by
# then transformers is whole, which it is not yet where `transformers.quantizers.auto` is imported.
wrapt.register_post_import_hook(_register_checkpoint, "transformers.modeling_utils")
wrapt.register_post_import_hook(_register_checkpoint, _SITES)
