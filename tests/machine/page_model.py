"""The plain twin of analyze.pages.passes: a dict from page to what it is allocated as. Slow, and easy to see through."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from collect.schema import PageEvent

N_BINS = 240


class PageModel:
    """Takes rows of the table `pages`, as dicts, in their order.

    Attributes (Counters): allocations, pages, freed, replaced by (event, order, gfp, migratetype, scope); lives and ages
    by (the same, power of ten); unknown, freed_again, allocated_again, splits by order; bins by (interval, event).
    """

    def __init__(self, n_pages: int, start_ns: int, end_ns: int) -> None:
        self.n_pages, self.start_ns, self.end_ns = n_pages, start_ns, end_ns
        self.state: dict[int, tuple[tuple[int, ...], int] | None] = {}
        self.allocations, self.pages, self.freed, self.replaced, self.lives = (Counter[Any]() for _ in range(5))
        self.unknown, self.freed_again, self.allocated_again, self.splits = (Counter[int]() for _ in range(4))
        self.bins: Counter[tuple[int, str]] = Counter()
        self.outside = self.failed = 0

    def take(self, rows: Iterable[dict[str, int]]) -> None:
        for row in rows:
            first, n = row["pfn"], 1 << row["order"]
            if first + n > self.n_pages:
                if first >= 1 << 63:
                    self.failed += 1
                else:
                    self.outside += 1
                continue
            if row["event"] == PageEvent.SPLIT:
                self.splits[row["order"]] += 1
                continue
            since = max(row["ts_ns"] - self.start_ns, 0)
            width = -(-(self.end_ns - self.start_ns) // N_BINS)
            self.bins[
                min(since // width, N_BINS - 1), "frees" if row["event"] == PageEvent.FREE else "allocations"
            ] += 1
            if row["event"] == PageEvent.FREE:
                self._free(first, n, since, row["order"])
            else:
                kind = tuple(row[name] for name in ("event", "order", "gfp", "migratetype", "scope"))
                self._allocate(first, n, since, kind)

    def _free(self, first: int, n: int, since: int, order: int) -> None:
        if first not in self.state:
            self.unknown[order] += 1
        elif self.state[first] is None:
            self.freed_again[order] += 1
        for page in range(first, first + n):
            held = self.state.get(page)
            if held is not None:
                kind, born = held
                self.freed[kind] += 1
                self.lives[kind, decade(max(since - born, 0))] += 1
            self.state[page] = None

    def _allocate(self, first: int, n: int, since: int, kind: tuple[int, ...]) -> None:
        self.allocations[kind] += 1
        self.pages[kind] += n
        if self.state.get(first) is not None:
            self.allocated_again[kind[1]] += 1
        for page in range(first, first + n):
            held = self.state.get(page)
            if held is not None:
                self.replaced[held[0]] += 1
            self.state[page] = (kind, since)

    def live(self) -> dict[int, tuple[int, ...]]:
        """Kind of each page that is allocated."""
        return {page: held[0] for page, held in self.state.items() if held is not None}

    def ages(self) -> Counter[Any]:
        held = (held for held in self.state.values() if held is not None)
        return Counter((kind, decade(max(self.end_ns - self.start_ns - born, 0))) for kind, born in held)


def decade(ns: int) -> int:
    return min(len(str(ns)) - 1, 15)
