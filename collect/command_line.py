"""What the three programs have in common: one line for whatever goes wrong, on stderr, and the exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from collect.errors import HostError, TraceError

__all__ = ["OneLineParser", "run_program"]


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, where argparse says it below a list of them all."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run_program(name: str, run: Callable[[], int]) -> int:
    """Run a command of the program `name`; returns the exit status.

    2 after one line on stderr; 141 where the reader of stdout went away (what a shell says of SIGPIPE), 130 after Ctrl-C.
    """
    try:
        with _checked_stdout():
            return run()
    except (HostError, TraceError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except MemoryError:
        print(f"{name}: out of memory; use a machine with more", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: aborted", file=sys.stderr)
        return 130


class _Checked:
    """stdout, whose failures (a full disk) are a HostError of one line; that its reader went away stays BrokenPipeError."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner

    def write(self, text: str) -> int:
        with _told():
            return self._inner.write(text)

    def flush(self) -> None:
        with _told():
            self._inner.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"standard output cannot be written ({error.strerror}); send it elsewhere") from None


@contextmanager
def _checked_stdout() -> Iterator[None]:
    """Everything is written when this is left; where it could not be, nobody tries again when the interpreter ends."""
    inner: TextIO | None = sys.stdout
    if inner is None:  # closed by whoever called us: there is nobody to tell
        yield
        return
    checked: Any = _Checked(inner)
    sys.stdout = checked
    try:
        yield
        checked.flush()
    except BaseException:
        _flush_or_drop(inner)
        raise
    finally:
        sys.stdout = inner


def _flush_or_drop(inner: TextIO) -> None:
    try:
        inner.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, inner.fileno())
        os.close(null)
