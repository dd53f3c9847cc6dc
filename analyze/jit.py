"""numba's `njit` with the type of the function kept, so that strict type checking sees through it.

numba caches compiled code beside the source, and by itself throws it away only when that one file changes, though the
functions that it calls from other files are compiled in. A rule mended in one file would not reach the loops of
another. So the stamp of a cache is made of all files that hold compiled code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np

__all__ = ["kernel", "signed"]

F = TypeVar("F", bound=Callable[..., object])

_PACKAGES = ("analyze", "replay")


def kernel(function: F) -> F:
    """Compile for flat arrays (`njit(cache=True)`). The Python function stays at `.py_func`."""
    compiled = numba.njit(cache=True)(function)
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is not None and hasattr(
        file, "_source_stamp"
    ):  # numba's own stamp stays where a numba of another build keeps it elsewhere
        file._source_stamp = _stamp()
    return cast(F, compiled)


@cache
def _stamp() -> tuple[str, int]:
    """Digest of every file that holds compiled code, in the shape of numba's own stamp."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((Path(__file__).parents[1] / package).rglob("*.py")):
            text = path.read_bytes()
            if b"analyze.jit" in text:
                digest.update(text)
    return digest.hexdigest(), 0


@kernel
def signed(cell: Any) -> int:
    """A cell of an unsigned array as int64: numba makes a float of an unsigned number and a signed one."""
    return np.int64(cell)  # type: ignore[return-value]
