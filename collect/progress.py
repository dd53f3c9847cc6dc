"""How far a command is: one line on the terminal that is written over and gone in the end. Elsewhere nothing.

What knows its amount says how much of it is done, how fast, and how long the rest will take (`Progress`); between such
parts the line tells that work goes on (`Working`). Nothing is shown of what takes less than two seconds. The line stands
on stderr; it is taken away before anything is printed (`terminal.clear`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

__all__ = ["Line", "Progress", "Working", "terminal"]

FIRST_SECONDS = 2.0
EVERY_SECONDS = 0.25
COLUMNS = 79


class Line:
    """The line, if `stream` (stderr where None) is a terminal that can write over one. All threads may use it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._given = stream
        self._lock = threading.Lock()
        self._width = 0
        self._held_by: object = None

    @property
    def _stream(self) -> TextIO | None:
        stream: Any = self._given or sys.stderr  # None where whoever called us closed it
        return stream.below if isinstance(stream, _Above) else stream

    @property
    def is_there(self) -> bool:
        """Whether anybody would see it."""
        stream = self._stream
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"

    def show(self, text: str, by: object = None) -> None:
        """Write `text` over what stands there; while somebody holds the line, others' text is dropped."""
        if not self.is_there:
            return
        with self._lock:
            if self._held_by is None or self._held_by is by:
                text = text[:COLUMNS]
                self._write("\r" + text.ljust(self._width))
                self._width = len(text)

    def clear(self) -> None:
        """Leave nothing of it."""
        with self._lock:
            if self._width:
                self._write("\r" + " " * self._width + "\r")
                self._width = 0

    def hold(self, by: object) -> None:
        """Keep the line for one who knows more than that work goes on; the first one keeps it."""
        with self._lock:
            self._held_by = self._held_by or by

    def let_go(self, by: object) -> None:
        with self._lock:
            if self._held_by is by:
                self._held_by = None

    def _write(self, text: str) -> None:
        stream = self._stream
        try:
            assert stream is not None
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody looks any more; the work goes on


terminal = Line()
"""The one line that there is."""


class _Above:
    """stderr while the line may stand there: what others write takes it away first."""

    def __init__(self, below: TextIO, line: Line) -> None:
        self.below, self._line = below, line

    def write(self, text: str) -> int:
        self._line.clear()
        return self.below.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


class Progress:
    """Work on a known amount, as a context. `advance` is cheap; it may be called for each batch.

    Args:
        doing: what is done, as `reading pages`.
        total: how much there is of it.
        unit: of what, in the plural.
    """

    def __init__(
        self,
        doing: str,
        total: int,
        unit: str,
        *,
        line: Line = terminal,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doing, self._total, self._unit = doing, total, unit
        self._line, self._clock = line, clock
        self._done = 0
        self._begin = self._shown = clock()

    def __enter__(self) -> Progress:
        self._line.hold(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.let_go(self)
        self._line.clear()

    def advance(self, n: int) -> None:
        """So much more is done."""
        self._done += n
        now = self._clock()
        if now - self._begin >= FIRST_SECONDS and now - self._shown >= EVERY_SECONDS:
            self._shown = now
            self._line.show(self.text(now - self._begin), by=self)

    def text(self, seconds: float) -> str:
        """The line after so many seconds: `reading pages: 45 of 100 M rows, 12.3 M rows/s, 5 s left`."""
        rate = self._done / seconds
        left = (self._total - self._done) / rate if rate else None
        scale, letter = next(
            ((scale, letter) for scale, letter in ((10**6, " M"), (10**3, " k")) if self._total >= 10 * scale), (1, "")
        )
        told = f"{self._doing}: {self._done / scale:,.0f} of {self._total / scale:,.0f}{letter} {self._unit}"
        told += f", {rate / scale:,.{0 if rate >= 100 * scale else 1}f}{letter} {self._unit}/s"
        return told + (f", {duration(max(0.0, left))} left" if left is not None else "")


class Working:
    """Tells, while a command runs, that it does: how long so far, and whether it waits for the compiler."""

    def __init__(self, line: Line = terminal, *, first_seconds: float = FIRST_SECONDS) -> None:
        self._line = line
        self._first_seconds = first_seconds
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._stderr = sys.stderr

    def __enter__(self) -> Working:
        if self._line.is_there:
            self._stderr, above = sys.stderr, _Above(sys.stderr, self._line)
            sys.stderr = above
            self._thread = threading.Thread(target=self._tell, name="directmap-working", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            sys.stderr = self._stderr
        self._line.clear()

    def _tell(self) -> None:
        begin, compiler, pause = time.monotonic(), _Compiler(), 0.1
        while not self._over.wait(pause):
            compiler.listen()
            seconds = time.monotonic() - begin
            if seconds >= self._first_seconds:
                doing = "compiling, the first time only" if compiler.at_work else "working"
                self._line.show(f"{doing}: {duration(seconds)}", by=self)
                pause = 1.0


class _Compiler:
    """numba's, once somebody has imported it: whether it is at work."""

    def __init__(self) -> None:
        self._running = 0
        self._listens = False

    @property
    def at_work(self) -> bool:
        return self._running > 0

    def listen(self) -> None:
        events: Any = sys.modules.get("numba.core.event")
        if self._listens or events is None or not hasattr(events, "register"):
            return
        self._listens = True
        compiler = self

        class Listener(events.Listener):  # type: ignore[misc]  # numba's own base class, known once it is loaded
            def on_start(self, event: object) -> None:
                compiler._running += 1

            def on_end(self, event: object) -> None:
                compiler._running -= 1

        events.register("numba:compile", Listener())


def duration(seconds: float) -> str:
    """`5 s`, `2 min 5 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
