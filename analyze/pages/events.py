"""What page events tell: how many allocations of which kind, how long they lived, what is left of them and how it is scattered.

One pass over the table `pages` (analyze.pages.passes), a row group after the other, decoded ahead on other threads.
Memory does not grow with the number of events: it is 4 KiB for each 2M frame that they touch, 512 MB at most.

Example::

    found = page_events(open_trace("my-trace"))
    found.by("order")            # allocations, pages, freed, live, by order
    found.lifetimes()            # pages by how long they lived, a row for each power of ten
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.losses import Doubt, lost_for
from analyze.pages import passes
from analyze.pages.names import gfp_names, migratetype_name, scope_name, scope_user
from analyze.pages.passes import ALL_PAGES, GOOD, MAX_ORDER, N_BINS, PageState, follow, new_state, tally
from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES, PageEvent
from collect.trace import Trace

__all__ = ["PageEvents", "page_events"]

COLUMNS = ("ts_ns", "event", "pfn", "order", "gfp", "migratetype", "scope")
KINDS = ("order", "gfp", "migratetype", "scope", "event")
"""What allocations can be counted by."""
_COUNTED = ["allocations", "pages", "freed_pages", "replaced_pages", "live_pages"]
_NANOSECONDS = tuple(10 ** (decade + 1) for decade in range(passes.N_DECADES))
_SHARES = (1, 8, 64, 256, 512)
"""Pages of a 2M frame, up to which frames are counted together."""
Z_95 = 1.96


@dataclass(frozen=True)
class PageEvents:
    """The page events of one trace. Pages are 4 KiB; numbers are of what was recorded unless they say otherwise.

    Attributes:
        recorded: "all", "scoped" (pages of regions and of splits alone) or "none", as asked for.
        sample: one block of 512 pages in so many was recorded throughout, and is what the numbers are of; 1: all. Pages of
            regions are never sampled.
        stopped_ns: from when on page events were off (--max-overhead), or None.
        classes: one row per kind of allocation: event (`PageEvent`), order, gfp, migratetype, scope, in_region (bool),
            allocations, pages, freed_pages, replaced_pages (allocated anew without a free that was seen), live_pages.
        lives: int64 [row of classes, decade]: pages freed at an age below 10^(decade + 1) ns.
        ages: the same of pages that were still allocated at the end.
        intervals: ts_ns (begin), allocations, frees, pages, freed_pages; equal lengths, the whole recording.
        orders: one row per order: allocations, frees, splits (split_page), frees_unknown (of pages of which nothing was
            seen before), frees_again (of free pages), allocated_again (of allocated pages).
        frames: one row per 2M frame with live pages: frame (pfn >> 9), live, unmovable, special (of regions).
        n_events: rows of the table, whatever they were.
        failed, outside, backwards: allocations that failed; rows whose pages lie outside of memory; rows with an
            earlier time than one before them.
        not_followed: rows of 2M frames beyond those of which the pages are kept in memory: counted, without lifetimes.
        lost: page events lost.
        emulated: times and rates mean nothing.
        why_not_seen: what the recorder could not see of allocations, in its own words.
        seconds: length of the recording.
        migratetypes: name of each migratetype in `classes`.
        block_events: int64, of each block that sampling chose, its events.
    """

    recorded: str
    sample: int
    stopped_ns: int | None
    classes: pd.DataFrame
    lives: npt.NDArray[np.int64]
    ages: npt.NDArray[np.int64]
    intervals: pd.DataFrame
    orders: pd.DataFrame
    frames: pd.DataFrame
    n_events: int
    failed: int
    outside: int
    backwards: int
    not_followed: int
    lost: int
    emulated: bool
    why_not_seen: list[str]
    seconds: float
    migratetypes: dict[int, str]
    block_events: npt.NDArray[np.int64]

    @property
    def whole(self) -> bool:
        """Whether every allocation and free of the kernel was to be recorded: else nothing is known of other pages."""
        return self.recorded == "all" and self.sample == 1

    def by(self, kind: str) -> pd.DataFrame:
        """Sums by "order", "gfp", "migratetype", "scope" or "event", most pages first; order by order."""
        found = self.classes.groupby(kind, as_index=False)[_COUNTED].sum()
        return found.sort_values(
            *(("order",) if kind == "order" else (["pages", kind],)), ascending=kind == "order", ignore_index=True
        )

    def name(self, kind: str, code: int) -> str:
        """A code of `by(kind)` in words."""
        if kind == "gfp":
            return "not recorded" if code == 0 and self.without_flags else gfp_names(code)
        if kind == "migratetype":
            return self.migratetypes.get(code, str(code))
        if kind == "scope":
            return scope_name(code) or "none"
        return PageEvent(code).name if kind == "event" else str(code)

    @property
    def without_flags(self) -> int:
        """Allocations that were found behind a region, in the page tables: their rows have gfp and migratetype 0."""
        told = (self.classes["event"] == PageEvent.ALLOC_BULK) & (self.classes["gfp"] == 0)
        return int(self.classes.loc[told, "allocations"].sum())

    def notes(self) -> list[str]:
        """What a reader of the sums by kind has to know."""
        n = self.without_flags
        return [f"flags and migratetype of {n:,} allocations were not recorded: they stand as UNMOVABLE"] if n else []

    def lifetimes(self) -> pd.DataFrame:
        """One row per power of ten: below_ns, pages freed at that age, pages live at the end (their age so far), and of the
        freed ones those of each migratetype."""
        kinds = self.classes["migratetype"].to_numpy()
        columns = {
            self.name("migratetype", int(kind)): self.lives[kinds == kind].sum(axis=0) for kind in np.unique(kinds)
        }
        return pd.DataFrame(
            {"below_ns": _NANOSECONDS, "freed": self.lives.sum(axis=0), "live": self.ages.sum(axis=0), **columns}
        )

    def scattered(self, column: str) -> pd.DataFrame:
        """2M frames by how many of their pages are `column` ("unmovable" or "special"): up_to, frames, pages."""
        pages = self.frames[column].to_numpy(np.int64)
        at = np.searchsorted(_SHARES, pages[pages > 0])
        return pd.DataFrame(
            {
                "up_to": _SHARES,
                "frames": np.bincount(at, minlength=len(_SHARES)),
                "pages": np.bincount(at, pages[pages > 0], len(_SHARES)).astype(np.int64),
            }
        )

    def scaled(self) -> tuple[int, int, int]:
        """Page events outside of regions that there were: estimate, and the 95 % interval of it.

        A block is recorded with chance 1/sample, so the variance is sample * (sample - 1) * sum of squares of the blocks'
        events (Horvitz and Thompson 1952, Poisson sampling). The hash that chooses spreads blocks more evenly than chance
        does, which makes the interval rather too wide.
        """
        counted = int(self.block_events.sum())
        squares = float((self.block_events.astype(np.float64) ** 2).sum())
        half = Z_95 * sqrt(self.sample * (self.sample - 1) * squares)
        estimate = counted * self.sample
        return estimate, max(counted, round(estimate - half)), round(estimate + half)

    @property
    def frees_unknown(self) -> int:
        """Frees of pages of which nothing was seen before: allocated before the recording began, or not seen."""
        return int(self.orders["frees_unknown"].sum())

    @property
    def contradictions(self) -> int:
        """Events that cannot be after those before them: free pages freed, allocated pages allocated. Each is a miss."""
        return int(self.orders["frees_again"].sum() + self.orders["allocated_again"].sum())

    def doubts(self) -> list[str]:
        """Why these numbers may be wrong, or what they leave out; empty if they are what happened."""
        n = f"{self.contradictions:,}"
        said = [
            (self.lost > 0, f"{self.lost:,} page events were lost: counts are lower bounds, some lifetimes too long"),
            (self.contradictions > 0, f"{n} events contradict earlier ones, so as many others were not seen"),
            (self.backwards > 0, f"{self.backwards:,} rows are out of order in time"),
            (self.outside > 0, f"{self.outside:,} rows name pages outside of the recorded memory and are left out"),
            (
                self.not_followed > 0,
                f"{self.not_followed:,} events are in frames beyond those kept in memory: no lifetimes",
            ),
            (self.stopped_ns is not None, "page events were off from some moment on (--max-overhead)"),
            (self.sample > 1, f"one block of 512 pages in {self.sample} was recorded"),
        ]
        return [text for holds, text in said if holds] + self.why_not_seen

    def to_json(self) -> dict[str, Any]:
        """Plain values. Rates and lifetimes are null where the CPUs were emulated."""
        estimate, low, high = self.scaled()
        lifetimes = None if self.emulated else _records(self.lifetimes())
        return {
            "recorded": self.recorded,
            "sample": self.sample,
            "events": self.n_events,
            "seconds": self.seconds,
            "emulated": self.emulated,
            "allocations_per_second": self._per_second("allocations"),
            "frees_per_second": self._per_second("frees"),
            "scaled_events": {"estimate": estimate, "low": low, "high": high} if self.sample > 1 else None,
            **{kind: [{"name": self.name(kind, row[kind])} | row for row in _records(self.by(kind))] for kind in KINDS},
            "users": self._users(),
            "lifetimes": lifetimes,
            "intervals": _records(self.intervals),
            "scattered": {name: _records(self.scattered(name)) for name in ("unmovable", "special")}
            if self.whole
            else None,
            "consistency": {
                "frees_of_unknown_pages": self.frees_unknown,
                "frees_of_free_pages": int(self.orders["frees_again"].sum()),
                "allocations_of_allocated_pages": int(self.orders["allocated_again"].sum()),
                "by_order": _records(self.orders),
                "backwards": self.backwards,
                "outside_memory": self.outside,
                "failed_allocations": self.failed,
                "not_followed": self.not_followed,
                "lost": self.lost,
            },
            "doubts": self.doubts(),
        }

    def _per_second(self, column: str) -> float | None:
        return (
            None
            if self.emulated or self.seconds <= 0
            else float(self.intervals[column].sum()) * self.sample / self.seconds
        )

    def _users(self) -> list[dict[str, Any]]:
        scoped = self.classes[self.classes["scope"] != 0]
        users = scoped["scope"].map(lambda scope: scope_user(int(scope)))
        return _records(scoped.assign(user=users).groupby("user", as_index=False)[_COUNTED].sum())


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def page_events(trace: Trace, n_threads: int = 2) -> PageEvents:
    """Go through the page events of a trace. Raises TraceError for codes that the format does not know.

    Args:
        n_threads: that decode; the pass itself takes one more, and none of them holds the interpreter.
    """
    manifest = trace.manifest
    sample, stopped_ns = _sampling(manifest)
    below = ALL_PAGES // sample
    columns = COLUMNS if sample == 1 else (*COLUMNS, "region_id")
    end = -(-manifest["memory"]["max_pfn"] // HUGE_FRAME_PAGES) * HUGE_FRAME_PAGES
    state = new_state(end)
    start_ns = manifest["ts_start_ns"]
    end_ns = max(stopped_ns or manifest["ts_end_ns"], start_ns + 1)
    shift = max(0, (end_ns - start_ns).bit_length() - passes.TIME_BITS)
    bin_ns = -(-(end_ns - start_ns) // N_BINS)
    done = 0
    for part in trace.batches("pages", columns, n_threads):
        # One chunk each, so never copied; read-only, all of them: one signature to compile.
        cells = [part[name].combine_chunks().to_numpy() for name in columns]
        if sample == 1:
            cells.append(cells[0])
        bad = follow(state, start_ns, shift, bin_ns, end, below, *cells) if part.num_rows else GOOD
        if bad != GOOD:
            raise TraceError(
                f"{trace.path}: table pages: row {done + bad} has an event or order that this format does not know; "
                "install a newer directmap or copy the trace anew"
            )
        done += part.num_rows
    return _found(trace, state, sample, stopped_ns, start_ns, end_ns, shift, bin_ns, done)


def _sampling(manifest: dict[str, Any]) -> tuple[int, int | None]:
    """One block in so many that was recorded from beginning to end, and when events went off, if they did."""
    sampling = manifest["sampling"]
    if sampling.get("pages") != "all":
        return 1, None
    steps = sampling.get("steps")
    first = sampling.get("page_sample", 1)
    taken: list[tuple[int, int]] = [(manifest["ts_start_ns"], first if _is_sample(first) else 1)]
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and _is_sample(step.get("page_sample")) and isinstance(step.get("ts_ns"), int):
            taken.append((max(0, min(step["ts_ns"], manifest["ts_end_ns"])), step["page_sample"]))
    off = [ts_ns for ts_ns, sample in taken if sample == 0]
    return max(1, *(sample for _, sample in taken)), off[0] if off else None


def _is_sample(value: object) -> bool:
    return isinstance(value, int) and (value == 0 or value in (1 << shift for shift in range(17)))


def _found(
    trace: Trace,
    state: PageState,
    sample: int,
    stopped_ns: int | None,
    start_ns: int,
    end_ns: int,
    shift: int,
    bin_ns: int,
    n_events: int,
) -> PageEvents:
    manifest = trace.manifest
    n_slabs, n_classes = int(state.totals[passes.N_SLABS]), int(state.totals[passes.N_CLASSES])
    live, unmovable, special = (np.zeros(len(state.slab), np.int32) for _ in range(3))
    if n_slabs:
        tally(state, end_ns - start_ns, shift, live, unmovable, special)
    frames = np.flatnonzero(live)
    keys = state.keys[:n_classes]
    used = state.classes[:n_classes, passes.ALLOCATIONS] > 0
    codes = {
        "event": keys >> 44 & 0xF,
        "order": keys >> 40 & 0xF,
        "gfp": keys & 0xFFFF_FFFF,
        "migratetype": keys >> 32 & 0xFF,
        "scope": keys >> 48 & 0xFF,
        "in_region": (keys >> 56 & 1).astype(bool),
    }
    counted = {name: state.classes[:n_classes, i] for i, name in enumerate(_COUNTED)}
    classes = pd.DataFrame(codes | counted)[used].reset_index(drop=True)
    config = manifest["kernel"].get("config")
    migratetypes = np.unique(classes["migratetype"].to_numpy()).tolist()
    order_names = ("allocations", "frees", "splits", "frees_unknown", "frees_again", "allocated_again")
    bin_names = ("allocations", "frees", "pages", "freed_pages")
    return PageEvents(
        recorded=str(manifest["sampling"].get("pages", "none")),
        sample=sample,
        stopped_ns=stopped_ns,
        classes=classes,
        lives=state.lives[:n_classes][used],
        ages=state.ages[:n_classes][used],
        intervals=pd.DataFrame(
            {"ts_ns": start_ns + bin_ns * np.arange(N_BINS)}
            | {name: state.bins[:, i] for i, name in enumerate(bin_names)}
        ),
        orders=pd.DataFrame(
            {"order": np.arange(MAX_ORDER + 1)} | {name: state.orders[i] for i, name in enumerate(order_names)}
        ),
        frames=pd.DataFrame(
            {"frame": frames, "live": live[frames], "unmovable": unmovable[frames], "special": special[frames]}
        ),
        n_events=n_events,
        failed=int(state.totals[passes.FAILED]),
        outside=int(state.totals[passes.OUTSIDE]),
        backwards=int(state.totals[passes.BACKWARDS]),
        not_followed=int(state.totals[passes.NOT_FOLLOWED]),
        lost=lost_for(manifest["losses"], Doubt.PAGES),
        emulated=bool(manifest["cpu"].get("emulated")),
        why_not_seen=_not_seen(manifest),
        seconds=(end_ns - start_ns) / 1e9,
        migratetypes={
            kind: migratetype_name(kind, config if isinstance(config, dict) else {}) for kind in migratetypes
        },
        block_events=state.events[:n_slabs].copy(),
    )


def _not_seen(manifest: dict[str, Any]) -> list[str]:
    """Of what the recorder could not see, what concerns page events, in its words."""
    missing = manifest["probes"].get("missing")
    probes = [probe for probe in missing if isinstance(probe, dict)] if isinstance(missing, list) else []
    return [str(probe.get("costs")) for probe in probes if "alloc" in str(probe.get("name"))]
