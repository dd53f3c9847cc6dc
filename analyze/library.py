"""A trace opened for questions from Python: everything that the commands print, as pandas DataFrames.

`analyze.open_trace` makes one; docs/library.md shows it at work. A method reads what it needs when it is called; what
is worked out once (the rebuilt trace, who did what) is kept.

Moments are nanoseconds since boot (int, as `ts_ns` in every table) or a TIME as on the command line (str: "12.5"
seconds since the start, "start", "end", "50%", "@NANOSECONDS").
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from analyze.decoded import decoded_table, level_category
from analyze.history import History, span_of
from analyze.when import Span, parse
from analyze.words.attributes import attribute_words
from collect.schema import ATTRS_HARDWARE, LEAF_PAGES
from collect.trace import Trace

if TYPE_CHECKING:
    from analyze.attribute import Attribution
    from analyze.diff import Diff
    from analyze.reconstruct import Rebuild
    from analyze.state_summary import StateSummary
    from analyze.verify import Verification
    from analyze.who import Who

__all__ = ["OpenedTrace", "Time"]

Time = int | str


class OpenedTrace:
    """A trace, for questions.

    Attributes:
        files: the trace as files (`collect.trace.Trace`).
        path: the directory.
        manifest: what was recorded, where, by what, and what was lost (`collect.manifest`).
    """

    def __init__(self, files: Trace) -> None:
        self.files = files
        self.path: Path = files.path
        self.manifest: dict[str, Any] = files.manifest

    def __repr__(self) -> str:
        return f"<trace {self.path.name!r} of {self.manifest['kernel'].get('release', '?')!s:.60}>"

    # --- moments ---------------------------------------------------------------------------------------------------

    @cached_property
    def span(self) -> Span:
        """The moments that the trace covers, and where seconds count from."""
        from analyze.snapshots import SnapshotTable

        return span_of(self.files, SnapshotTable(self.files))

    def at(self, time: Time) -> int:
        """A moment in nanoseconds since boot. Raises argparse.ArgumentTypeError for a text that is no TIME."""
        return parse(time).ns(self.span) if isinstance(time, str) else int(time)

    # --- tables, as collect.schema describes them --------------------------------------------------------------------

    def table(
        self, name: str, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """A table in order of time, rows with `start` <= ts_ns <= `end` (of the files only what may hold them is read).

        Codes are categories by name, `comm_id` and `name_id` the texts `comm` and `name`; units as in the schema.
        """
        between = None
        if start is not None or end is not None:
            between = (0 if start is None else self.at(start), (1 << 64) - 1 if end is None else self.at(end))
        return decoded_table(self.files, name, columns, between)

    def changes(
        self, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Changes of the direct map by their entry, `row` as index: what `row` means in every other table."""
        found = self.table("changes", start, end, columns if columns is None else [*columns, "call_id"])
        ids = self.files.table("changes", ["call_id"])["call_id"].to_numpy()
        order = np.argsort(ids, kind="stable")
        row = order[np.searchsorted(ids[order], found["call_id"].to_numpy())] if len(ids) else order
        found.index = pd.Index(row, name="row")
        return found if columns is None or "call_id" in columns else found.drop(columns="call_id")

    def pages(
        self, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Page allocations and frees."""
        return self.table("pages", start, end, columns)

    def regions(
        self, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Allocations and frees of executable and secret memory."""
        return self.table("regions", start, end, columns)

    def snapshots(
        self, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Page tables as they were read."""
        return self.table("snapshots", start, end, columns)

    def counters(
        self, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """The kernel's and the recorder's totals, once a second."""
        return self.table("counters", start, end, columns)

    def observed_splits(
        self, start: Time | None = None, end: Time | None = None, columns: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Splits as the probe saw them done (table `splits`); `splits()` are those that the rules rebuild."""
        return self.table("splits", start, end, columns)

    def stack(self, stack_id: int) -> list[str]:
        """Frames of a call stack, innermost first; none for 0."""
        return self.attribution.stacks.frames(stack_id)

    # --- the map -----------------------------------------------------------------------------------------------------

    def state_at(self, time: Time, *, hardware: bool = False, flags: bool = False) -> pd.DataFrame:
        """The map at a moment as runs of equal neighbouring leaves, in order of page frame.

        Args:
            hardware: keep the accessed and dirty bits. The CPU sets them by itself, so they are as last read or written.
            flags: add a column of the attributes in words ("P RW G NX").

        Columns: pfn, level ("4K", "2M", "1G"; holes have no row), n_leaves, n_pages (of 4 KiB), attrs (Pte bits).
        Raises TraceError for a moment that the trace does not cover.
        """
        pfn, level, n_leaves, attrs = self.history.peek(self.at(time)).runs()
        n_pages = n_leaves * np.array(LEAF_PAGES, np.int64)[level]
        if not hardware and len(pfn):
            attrs = attrs & ~np.uint64(ATTRS_HARDWARE)
            follows = (pfn[1:] == (pfn + n_pages)[:-1]) & (level[1:] == level[:-1]) & (attrs[1:] == attrs[:-1])
            first = np.flatnonzero(np.concatenate([[True], ~follows]))
            n_leaves, n_pages = np.add.reduceat(n_leaves, first), np.add.reduceat(n_pages, first)
            pfn, level, attrs = pfn[first], level[first], attrs[first]
        found = {"pfn": pfn, "level": level_category(level, "state"), "n_leaves": n_leaves, "n_pages": n_pages}
        table = pd.DataFrame({**found, "attrs": attrs})
        return table.assign(flags=pd.Categorical(attribute_words(attrs.tolist()))) if flags else table

    def state_summary(self, time: Time = "end") -> StateSummary:
        """The map at a moment in sums (`directmap-analyze state`)."""
        from analyze.state_summary import summarize_state

        return summarize_state(self.history, self.at(time))

    def levels(self) -> pd.DataFrame:
        """Leaf entries over time, one row per change that altered them: ts_ns, seconds, k4, m2, g1."""
        levels = self.rebuilt.levels
        return levels.assign(seconds=(levels["ts_ns"] - self.span.zero_ns) / 1e9)

    def timeline(self, n_steps: int = 20) -> pd.DataFrame:
        """Leaf entries and splits by user in equal steps (`directmap-analyze timeline`)."""
        from analyze.timeline import timeline

        return timeline(self.rebuilt, self.attribution, self.span, n_steps)

    def diff(self, start: Time = "start", end: Time = "end") -> Diff:
        """What changed between two moments, and whose doing it was (`directmap-analyze diff`)."""
        from analyze.diff import diff

        return diff(self.history, self.attribution.makers, self.at(start), self.at(end))

    # --- who ---------------------------------------------------------------------------------------------------------

    def splits(self) -> pd.DataFrame:
        """Every split with whose doing it is, in order of effect: the columns of `Rebuild.splits` and `Attribution.splits`.

        `level` is that of the entry which was split ("2M", "1G").
        """
        splits = self.attribution.splits
        return splits.assign(
            level=level_category(splits["level"].to_numpy(np.uint8), "splits"), user=pd.Categorical(splits["user"])
        )

    def special(self, time: Time | None = None) -> pd.DataFrame:
        """Pages that keep a frame in 4K entries, at the end or at a moment (columns: `analyze.keepers.keepers`)."""
        return self._keepers(time)[0]

    def frames(self, time: Time | None = None) -> pd.DataFrame:
        """2M frames in 4K entries, at the end or at a moment (columns: `analyze.keepers.keepers`)."""
        return self._keepers(time)[1]

    def who(self, by: str = "name", time: Time | None = None) -> Who:
        """Who splits and who keeps split, by user, name, process, stack or region (`directmap-analyze who`)."""
        from analyze.causes import By
        from analyze.who import who

        if time is None:
            return who(self.rebuilt, self.attribution, By(by))
        ts_ns = self.at(time)
        return who(self.rebuilt, self.attribution, By(by), state=self.history.state_at(ts_ns), ts_ns=ts_ns)

    def _keepers(self, time: Time | None) -> tuple[pd.DataFrame, pd.DataFrame]:
        from analyze.keepers import keepers

        if time is None:
            return self.attribution.special, self.attribution.frames
        ts_ns = self.at(time)
        return keepers(self.rebuilt, self.attribution.makers, self.history.peek(ts_ns), ts_ns)

    # --- whether to believe it ---------------------------------------------------------------------------------------

    def verify(self) -> Verification:
        """Every check of `directmap-analyze verify`; `.exact` sums it up."""
        from analyze.verify import verify

        return verify(self.files, self.rebuilt)

    # --- worked out once ---------------------------------------------------------------------------------------------

    @cached_property
    def rebuilt(self) -> Rebuild:
        """START and the changes, played to the end (`analyze.reconstruct`)."""
        from analyze.reconstruct import rebuild

        return rebuild(self.files)

    @cached_property
    def attribution(self) -> Attribution:
        """Whose doing each change and split is (`analyze.attribute`)."""
        from analyze.attribute import attribute

        return attribute(self.files, self.rebuilt)

    @cached_property
    def history(self) -> History:
        """The map at any moment, with checkpoints (`analyze.history`)."""
        return History(self.rebuilt.course)
