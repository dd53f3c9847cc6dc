"""Compiles functions for flat arrays with numba: cheaply, cached, and with their types kept for strict checking.

A compiled function is called from Python, or from compiled code into which it is compiled, or from both. Only the first
needs machine code that Python can call (which for a tuple of eleven arrays takes longer to compile than most functions) and a
place in the cache. So each `Kernel` is two functions to numba, and either is compiled when it is first used.

numba caches compiled code beside the source, and by itself throws it away only when that one file changes, though the
functions that it calls from other files are compiled in. A rule mended in one file would not reach the loops of
another. So the stamp of a cache is made of all files that hold compiled code.

A first run waits for numba, so what is compiled keeps to what compiles fast: nothing of numpy's that brings its error
messages along (searchsorted, assignments to slices), for which a loop of three lines takes a tenth of the time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache, update_wrapper
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

__all__ = ["Kernel", "first_from", "kernel", "signed"]

F = TypeVar("F", bound=Callable[..., object])

_PACKAGES = ("analyze", "replay")

_NJIT: Any = numba.njit
_CONFIG: Any = numba.config
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "no_cfunc_wrapper": True}

_MAKE_ARRAYS = frozenset(
    (
        *("empty", "zeros", "ones", "full", "arange", "empty_like", "zeros_like", "ones_like", "full_like", "copy"),
        *(
            "astype",
            "concatenate",
            "where",
            "nonzero",
            "flatnonzero",
            "unique",
            "sort",
            "argsort",
            "cumsum",
            "bincount",
        ),
    )
)
"""Of numpy. A kernel that names none of them is compiled without counting references to arrays, which in a loop over rows
that hands tuples of arrays to other kernels takes four times as long as the work. One that makes arrays in another way
numba refuses ("Only accept returning of array passed into the function as argument"): add the name here."""


class Kernel:
    """A function that is compiled when it is first called, by Python or by another kernel.

    Attributes:
        py_func: the Python function, never compiled.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        update_wrapper(self, function)
        self.py_func = function
        names = function.__code__.co_names
        self._options = _OPTIONS | {"_nrt": not _MAKE_ARRAYS.isdisjoint(names)}
        self._for_python: Any = None
        self._for_kernels: Any = None

    def __call__(self, *arguments: object) -> object:
        if self._for_python is None:
            self._for_python = _cached(_NJIT(cache=True, **self._options)(self.py_func))
        return self._for_python(*arguments)

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this object for in compiled code."""
        if self._for_kernels is None:
            self._for_kernels = _by_type(_NJIT(no_cpython_wrapper=True, **self._options)(self.py_func))
        return self._for_kernels._numba_type_


def kernel(function: F) -> F:
    """Compile for flat arrays (see `Kernel`). With NUMBA_DISABLE_JIT=1 the function stays as it is."""
    return function if _CONFIG.DISABLE_JIT else cast(F, Kernel(function))


def _by_type(compiled: Any) -> Any:
    """Have callers share one specialisation by type, where numba makes another for each literal argument."""
    template = compiled.get_call_template

    def by_type(args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        plain: Any = numba.types.unliteral
        return template([plain(arg) for arg in args], {name: plain(arg) for name, arg in kws.items()})

    compiled.get_call_template = by_type
    return compiled


def _cached(compiled: Any) -> Any:
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is not None and hasattr(
        file, "_source_stamp"
    ):  # numba's own stamp stays where a numba of another build keeps it elsewhere
        file._source_stamp = _stamp()
    return compiled


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


@kernel
def first_from(ascending: npt.NDArray[np.int64], value: int) -> int:
    """Index of the first cell that is not below a value: np.searchsorted, whose own text, error messages and all, takes seconds to compile."""
    low, high = 0, len(ascending)
    while low < high:
        middle = (low + high) >> 1
        if ascending[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
