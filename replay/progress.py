"""How far a row of replays is, in one line on a terminal; nothing where stderr is none."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TextIO

from analyze.terminal import COLUMNS, clean

__all__ = ["Progress"]


class Progress(AbstractContextManager["Progress"]):
    """Counts replays that are done; the line is wiped out when the block is left."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done = total, 0
        self._stream = sys.stderr if stream is None else stream
        self._shown = self._stream is not None and self._stream.isatty()
        self._begin = time.monotonic()
        self._tell("reading the trace")

    def done(self, what: str) -> None:
        """One more replay is done, of the policy `what`."""
        self._done += 1
        taken = time.monotonic() - self._begin
        left = taken / self._done * (self._total - self._done)
        self._tell(f"{self._done} of {self._total} replays, {left:.0f} s left ({clean(what, 40)})")

    def _tell(self, line: str) -> None:
        if self._shown:
            self._stream.write(f"\r{line[: COLUMNS - 1]:<{COLUMNS - 1}}")
            self._stream.flush()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._stream.write("\r" + " " * (COLUMNS - 1) + "\r")
            self._stream.flush()
