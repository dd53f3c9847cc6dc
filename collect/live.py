"""What a recording shows while it runs: a table on a terminal (--live), or one line that is written over."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import numpy as np
import numpy.typing as npt

from collect.errors import HostError

__all__ = ["NoView", "OneLine", "Status", "Table", "View", "tell", "view_for"]

REFRESHES_PER_SECOND = 2
N_USERS = 8
LEVELS = {"DirectMap1G": "1G", "DirectMap2M": "2M", "DirectMap4k": "4K"}


@dataclass
class Status:
    """What is known at a tick.

    Attributes:
        seconds: since recording began.
        duration: seconds after which it will end; None where it was not told.
        rows: by table, so far.
        lost: by class, so far.
        levels_kb: memory that each level maps now, by meminfo's names: the start snapshot and meminfo's growth since.
        splits: leaves that changes split, by the name of the process, before this tick.
        recent_splits: the same, in this tick.
        pages_per_second: page events.
        trace_bytes: on the disk.
        page_sample: one page block in so many is recorded; 0: none.
        overhead_percent: of all CPUs' time, for the page programs; None where it is not measured.
    """

    seconds: float = 0.0
    duration: float | None = None
    rows: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    levels_kb: dict[str, int] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)
    recent_splits: Counter[str] = field(default_factory=Counter)
    pages_per_second: float = 0.0
    trace_bytes: int = 0
    page_sample: int = 1
    overhead_percent: float | None = None

    def count_splits(self, changes: npt.NDArray[np.void]) -> None:
        """Take note of changes: those after which the first page's leaf is smaller than before."""
        split = (changes["level_first"] > 0) & (changes["level_first"] < changes["level_before"])
        names, n = np.unique(changes["comm"][split], return_counts=True)
        for name, k in zip(names.tolist(), n.tolist(), strict=True):
            self.recent_splits[name.decode(errors="replace")] += int(k)

    def end_tick(self) -> None:
        """A second is over: its splits are so far's."""
        self.splits += self.recent_splits
        self.recent_splits = Counter()

    @property
    def clock(self) -> str:
        """`23 s`, or `23 of 60 s`."""
        return f"{self.seconds:.0f}{f' of {self.duration:g}' if self.duration is not None else ''} s"

    @property
    def n_lost(self) -> int:
        return sum(self.lost.values())


class View(Protocol):
    """Shows a recording. `update` may be called as often as one likes."""

    def update(self, status: Status) -> None: ...

    def close(self) -> None: ...


class NoView:
    """Nothing: stderr is a file."""

    def update(self, status: Status) -> None:
        pass

    def close(self) -> None:
        pass


class OneLine:
    """One line without colours, written over once a second on a terminal, or a line of its own every ten seconds."""

    def __init__(self, stream: TextIO, *, over: bool) -> None:
        self._stream, self._over = stream, over
        self._shown = -1e9
        self._width = 0

    def update(self, status: Status) -> None:
        now = time.monotonic()
        if now - self._shown < (1 / REFRESHES_PER_SECOND if self._over else 10):
            return
        self._shown = now
        text = one_line(status)
        self._stream.write("\r" + text.ljust(self._width) if self._over else text + "\n")
        self._stream.flush()
        self._width = len(text)

    def close(self) -> None:
        if self._over and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()


class Table:
    """rich's live display. Raises HostError where rich is missing."""

    def __init__(self, stream: TextIO) -> None:
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:
            raise HostError("--live: needs the Python package rich (pip install rich); record without it") from None
        # A thread of rich's would draw between our ticks for nothing: we say when.
        self._live = Live(console=Console(file=stream), auto_refresh=False, transient=True)
        self._live.start()
        self._shown = -1e9

    def update(self, status: Status) -> None:
        now = time.monotonic()
        if now - self._shown >= 1 / REFRESHES_PER_SECOND:
            self._shown = now
            self._live.update(picture(status), refresh=True)

    def close(self) -> None:
        self._live.stop()


def view_for(*, live: bool, stream: TextIO | None = None) -> View:
    """What fits where `stream` (stderr) goes: no table without a terminal, or under NO_COLOR or TERM=dumb."""
    stream = stream or sys.stderr
    terminal = stream.isatty()
    if live and terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        return Table(stream)
    if terminal or live:
        return OneLine(stream, over=terminal)
    return NoView()


def tell(text: str) -> None:
    """A line on stderr, if anybody is there: a terminal that closed, or a reader that went away, makes no recording fail."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def one_line(status: Status) -> str:
    """A recording in one line."""
    parts = [status.clock]
    if status.levels_kb:
        parts.append(" ".join(f"{label} {gib(status.levels_kb.get(name, 0))}" for name, label in LEVELS.items()))
        parts.append(f"{status.rows.get('changes', 0)} changes")
        parts.append(f"{status.splits.total() + status.recent_splits.total()} splits")
    parts.append(f"{status.rows.get('pages', 0)} page events ({status.pages_per_second:,.0f}/s)")
    parts.append(f"{status.n_lost} lost")
    parts.append(mib(status.trace_bytes))
    return ", ".join(parts)


def picture(status: Status) -> Any:
    """A recording as a table of rich's."""
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    facts = RichTable.grid(padding=(0, 2))
    for name, value in _facts(status):
        facts.add_row(Text(name, style="dim"), Text(value))
    parts: list[Any] = [facts]
    if status.levels_kb:
        users = RichTable(box=None, padding=(0, 2), header_style="dim")
        users.add_column("split by")
        users.add_column("last second", justify="right")
        users.add_column("so far", justify="right")
        so_far = status.splits + status.recent_splits
        for name, n in so_far.most_common(N_USERS):
            users.add_row(Text(printable(name)), str(status.recent_splits[name]), str(n))
        if not so_far:
            users.add_row(Text("nobody yet"), "", "")
        parts.append(users)
    return Group(*parts)


def _facts(status: Status) -> list[tuple[str, str]]:
    facts = [("recording", f"{status.clock}, {mib(status.trace_bytes)} on disk")]
    if status.levels_kb:
        facts.append(
            ("direct map", "   ".join(f"{label} {gib(status.levels_kb.get(n, 0))}" for n, label in LEVELS.items()))
        )
        facts.append(("changes", f"{status.rows.get('changes', 0):,}, region events {status.rows.get('regions', 0):,}"))
    sample = {1: "", 0: " (off)"}.get(status.page_sample, f" (one block in {status.page_sample})")
    facts.append(("page events", f"{status.rows.get('pages', 0):,}, {status.pages_per_second:,.0f}/s{sample}"))
    if status.overhead_percent is not None:
        facts.append(("page programs", f"{status.overhead_percent:.2f} % of all CPUs' time"))
    losses = [f"{name} {n:,}" for name, n in status.lost.items() if n]
    facts.append(("lost", ", ".join(losses) or "nothing"))
    return facts


def printable(name: str) -> str:
    """A process's name on a terminal: it may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in name)


def gib(kb: int) -> str:
    return f"{kb / (1 << 20):.2f} GiB"


def mib(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.1f} MiB"
