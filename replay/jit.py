"""numba's compiler with a type that a checker understands: a compiled function keeps the signature of its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["jit"]

_F = TypeVar("_F", bound=Callable[..., Any])


def jit(function: _F) -> _F:
    """Compile on first call, cached on disk. `jit(f).py_func` is the plain function."""
    return cast(_F, numba.njit(cache=True)(function))
