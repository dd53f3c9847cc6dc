"""numba's `njit` with the type of the function kept, so that strict type checking sees through it.

numba caches compiled code beside the source. Its cache looks at the file of the function alone: after a change to a
function that others call, touch the files of the callers or remove `__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np

__all__ = ["kernel", "signed"]

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile for flat arrays (`njit(cache=True)`). The Python function stays at `.py_func`."""
    return cast(F, numba.njit(cache=True)(function))


@kernel
def signed(cell: Any) -> int:
    """A cell of an unsigned array as int64: numba makes a float of an unsigned number and a signed one."""
    return np.int64(cell)  # type: ignore[return-value]
