"""Compiled functions: what is compiled when, and that the Python function stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba.core import event

from analyze.jit import Kernel, kernel
from analyze.pages.beside import pages_beside
from analyze.pages.events import page_events
from collect.errors import TraceError
from collect.trace import open_trace
from tests.machine.rewrite import with_cell

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"


class Pair(NamedTuple):
    first: Any
    second: Any


@kernel
def _added(pair: Pair, n: int) -> int:
    return pair.first[n] + pair.second[n]  # type: ignore[no-any-return]


@kernel
def _twice(pair: Pair) -> int:
    return _added(pair, 0) + _added(pair, 1)


@kernel
def _made(n: int) -> int:
    cells = np.arange(n)
    return cells[n - 1]  # type: ignore[no-any-return]


class Compilations(event.Listener):
    """Names of the functions that numba compiles."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_start(self, what: Any) -> None:
        self.names.append(what.data["dispatcher"].py_func.__name__)

    def on_end(self, what: Any) -> None:
        pass


def test_a_kernel_is_compiled_once_for_all_literal_arguments() -> None:
    pair = Pair(np.arange(3), np.arange(3) + 10)
    seen = Compilations()
    with event.install_listener("numba:compile", seen):
        assert _twice(pair) == 22
    assert seen.names.count("_added") <= 1  # not at all where the cache holds _twice
    assert isinstance(_added, Kernel)
    assert _added._for_python is None, "nobody called it from Python"
    assert _added(pair, 2) == _added.py_func(pair, 2) == 14


def test_a_kernel_may_make_arrays() -> None:
    assert _made(5) == 4


def test_without_a_compiler_the_functions_are_pythons_own() -> None:
    code = "from analyze.jit import kernel; f = lambda n: n + 1; assert kernel(f) is f"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, check=False)
    assert done.returncode == 0


def test_a_process_beside_finds_what_this_one_finds() -> None:
    trace = open_trace(SAMPLE)
    with pages_beside(trace, worth=0) as pages:
        beside = pages()
    assert beside is not None
    assert beside.to_json() == page_events(trace).to_json()


def test_an_error_beside_is_told_here(tmp_path: Path) -> None:
    trace = open_trace(with_cell(SAMPLE, tmp_path / "bad", "pages", "order", 7, 99))
    with pytest.raises(TraceError, match="table pages: row"), pages_beside(trace, worth=0) as pages:
        pages()


def test_nothing_is_run_that_lies_in_the_directory_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a trace from a stranger may bring it along."""
    for name in ("pandas", "numpy", "pyarrow"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with pages_beside(open_trace(SAMPLE), worth=0) as pages:
        assert pages() is not None
    assert not (tmp_path / "ran").exists()


def test_a_process_beside_ends_with_whoever_began_it() -> None:
    with pytest.raises(KeyboardInterrupt), pages_beside(open_trace(SAMPLE), worth=0):
        raise KeyboardInterrupt
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if b"analyze.pages.beside" in Path(f"/proc/{pid}/cmdline").read_bytes()]
