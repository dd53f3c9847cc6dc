"""numba's `njit` with the type of the function kept, so that strict type checking sees through it.

numba caches compiled code beside the source. Its cache looks at the file of the function alone: after a change to a
function that others call, touch the files of the callers or remove `__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numba

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile for flat arrays (`njit(cache=True)`). The Python function stays at `.py_func`."""
    return numba.njit(cache=True)(function)  # type: ignore[no-any-return]
