"""How far a row of replays is: the line that stands on a terminal while they run."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType

from analyze.words.terminal import clean
from collect.progress import Line, duration, terminal

__all__ = ["Progress"]


class Progress(AbstractContextManager["Progress"]):
    """Counts replays that are done; the line is gone when the block is left."""

    def __init__(self, total: int, line: Line = terminal) -> None:
        self._total, self._done = total, 0
        self._line = line
        self._begin = time.monotonic()
        line.hold(self)

    def done(self, what: str) -> None:
        """One more replay is done, of the policy `what`."""
        self._done += 1
        left = (time.monotonic() - self._begin) / self._done * (self._total - self._done)
        self._line.show(f"{self._done} of {self._total} replays, {duration(left)} left ({clean(what, 40)})", by=self)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.let_go(self)
        self._line.clear()
