"""When memory is short, and how much a shrinker is then asked for: by a scenario, or by what the trace counted.

A scenario is text: `EVERY:PAGES` (each EVERY seconds a call for PAGES pages), or a file with a line `SECONDS PAGES` for each
call, seconds since the start snapshot, `#` before a remark. `trace` takes the recorded counts of free blocks instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collect.errors import TraceError
from collect.trace import Trace
from replay.placement import Host

__all__ = ["ALLOC", "BATCH_PAGES", "FREE", "SHRINK", "Pressure", "low_watermark", "with_shrinker"]

ALLOC, FREE, SHRINK = range(3)
"""What a cache is asked to do."""

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BATCH_PAGES = 128
"""SHRINK_BATCH (mm/vmscan.c): what one call asks for, at least."""

MAX_CALLS = 1 << 20
_MAX_PAGES = 1 << 34


@dataclass(frozen=True)
class Pressure:
    """Calls of the shrinker: at fixed moments (`seconds`, `pages`), periodic (`every`), or by the trace's counts."""

    text: str
    every: float = 0.0
    pages_each: int = 0
    seconds: tuple[float, ...] = ()
    pages: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pressure:
        """Raises TraceError for what is no scenario."""
        if text == "trace":
            return cls(text)
        every, colon, pages = text.partition(":")
        try:
            if colon and isfinite(float(every)) and float(every) > 0 and 0 < int(pages) <= _MAX_PAGES:
                return cls(text, every=float(every), pages_each=int(pages))
            lines = [line.split("#")[0].split() for line in Path(text).read_text(encoding="utf-8").splitlines()]
            rows = [(float(a), int(b)) for a, b in (line for line in lines if line)]
        except (OSError, ValueError, UnicodeDecodeError):
            raise TraceError(
                f"--pressure {text[:60]!r}: neither trace, nor EVERY_SECONDS:PAGES, nor a file of lines SECONDS PAGES; "
                "say for example --pressure 10:4096"
            ) from None
        if len(rows) > MAX_CALLS or any(not (isfinite(a) and 0 < b <= _MAX_PAGES) for a, b in rows):
            raise TraceError(f"--pressure {text[:60]!r}: more than {MAX_CALLS} lines, or a number that makes no sense")
        rows.sort()
        return cls(text, seconds=tuple(a for a, _ in rows), pages=tuple(b for _, b in rows))

    def moments(self, trace: Trace, host: Host, ram_pages: int) -> tuple[Int64, Int64]:
        """(when, pages asked for), within the recording."""
        start, end = trace.manifest["ts_start_ns"], trace.manifest["ts_end_ns"]
        if self.text == "trace":
            free = (host.free_blocks << np.arange(host.free_blocks.shape[1])).sum(axis=1)
            short = np.flatnonzero(free < low_watermark(ram_pages))
            return host.free_ns[short], np.full(len(short), BATCH_PAGES, np.int64)
        if self.every:
            n = min(int((end - start) / 1e9 / self.every), MAX_CALLS)
            ns = start + ((np.arange(n) + 1) * self.every * 1e9).astype(np.int64)
            return ns, np.full(n, self.pages_each, np.int64)
        ns = start + (np.array(self.seconds, np.float64).clip(-1e9, 1e9) * 1e9).astype(np.int64)
        inside = (ns >= start) & (ns <= end)
        return ns[inside], np.array(self.pages, np.int64)[inside]


def low_watermark(ram_pages: int) -> int:
    """Pages below which kswapd starts: 5/4 of min_free_kbytes, which is sqrt(16 x kB of memory), 128 kB to 256 MB.

    Source: calculate_min_free_kbytes and __setup_per_zone_wmarks (mm/page_alloc.c), zones taken together.
    """
    min_free_kb = min(max(int(sqrt(ram_pages * 4 * 16)), 128), 262144)
    return min_free_kb // 4 * 5 // 4


def with_shrinker(
    event_request: Int64, event_is_free: Bools, event_ns: Int64, host: Host
) -> tuple[Int64, npt.NDArray[np.uint8], Int64]:
    """Allocations, frees and the host's calls of the shrinker in order of time.

    Returns for each its subject (a request, or of a SHRINK the pages asked for), ALLOC, FREE or SHRINK, and its time.
    """
    if not len(host.pressure_ns):
        return event_request, np.where(event_is_free, np.uint8(FREE), np.uint8(ALLOC)), event_ns
    subject = np.concatenate((event_request, host.pressure_pages)).astype(np.int64)
    op = np.concatenate((np.where(event_is_free, FREE, ALLOC), np.full(len(host.pressure_ns), SHRINK)))
    ns = np.concatenate((event_ns, host.pressure_ns)).astype(np.int64)
    in_order = np.argsort(ns, kind="stable")
    return subject[in_order], op[in_order].astype(np.uint8), ns[in_order]
