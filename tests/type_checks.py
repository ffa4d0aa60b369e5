"""How annotations are checked in tests: by beartype, an int being good where a float is wanted.

jaxtyping compares shapes from one argument to the next, and for that wraps every function: each
call binds its arguments by name, and is checked twice. Where no annotation has a shape, beartype
alone checks the same in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError))

_with_shapes = jaxtyping.jaxtyped
_PLAIN: dict[CodeType, bool] = {}  # functions within functions are defined again and again


def jaxtyped(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """Stand in for jaxtyping's decorator of this name: by beartype alone where that is enough."""
    if function is None:
        return lambda defined: jaxtyped(defined, typechecker=typechecker)
    if isinstance(function, FunctionType) and _is_plain(function):
        return typechecker(function)
    return _with_shapes(function, typechecker=typechecker)


def _is_plain(function: FunctionType) -> bool:
    """Return whether all annotations can be resolved now, and none has a shape."""
    if function.__code__ not in _PLAIN:
        try:
            hints = get_type_hints(function, include_extras=True).values()
        except Exception:  # a name that only type checkers import, or a class defined further down
            hints = [jaxtyping.Shaped[Any, "..."]]
        _PLAIN[function.__code__] = not any(_has_shape(hint) for hint in hints)
    return _PLAIN[function.__code__]


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)  # Callable's parameters are a list
    return any(_has_shape(part) for part in parts)


def install(modules: list[str]) -> None:
    """Check every function of these modules, and of those inside them, from their import on."""
    jaxtyping.jaxtyped = jaxtyped  # what the hook writes above every function
    jaxtyping.install_import_hook(modules, f"{__name__}.checked")
