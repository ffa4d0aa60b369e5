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

if TYPE_CHECKING:
    from spectrim import sources
    from spectrim.errors import SpectrimError
    from spectrim.evaluation import evaluate
    from spectrim.formats import FactoredLinear
    from spectrim.inspection import inspect
    from spectrim.methods import Decomposition
    from spectrim.pipeline import shrink_from_options as shrink
    from spectrim.plan import Plan
    from spectrim.recipe import Recipe
    from spectrim.sites import Site
    from spectrim.statistics import Statistics

__version__ = "0.1.0"

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
    "Recipe": "spectrim.recipe:Recipe",
    "Site": "spectrim.sites:Site",
    "SpectrimError": "spectrim.errors:SpectrimError",
    "Statistics": "spectrim.statistics:Statistics",
    "evaluate": "spectrim.evaluation:evaluate",
    "inspect": "spectrim.inspection:inspect",
    "shrink": "spectrim.pipeline:shrink_from_options",
    "sources": "spectrim.sources",
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
    # While spectrim.sites is what loads transformers, the checkpoint, which needs the sites, has to
    # wait for them.
    if loaded.__name__ == _SITES or _SITES not in sys.modules:
        importlib.import_module("spectrim.checkpoint")


_SITES = "spectrim.sites"
# from_pretrained lives in this module, so the format is known before anything can be loaded; by
# then transformers is whole, which it is not yet where `transformers.quantizers.auto` is imported.
wrapt.register_post_import_hook(_register_checkpoint, "transformers.modeling_utils")
wrapt.register_post_import_hook(_register_checkpoint, _SITES)
