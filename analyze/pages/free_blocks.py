"""How much memory was free in blocks of each order over time, per zone: /proc/buddyinfo as the recorder read it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analyze.counter_series import CounterSeries

__all__ = ["HUGE_ORDER", "FreeBlocks", "free_blocks"]

HUGE_ORDER = 9
"""A block of this order is a whole 2M frame."""
MAX_ORDER = 10
_NAME = re.compile(r"buddyinfo/(\d{1,4})/([A-Za-z0-9]{1,12})/(\d{1,2})")
_MOST = 1 << 40


@dataclass(frozen=True)
class FreeBlocks:
    """Free blocks of one zone.

    Attributes:
        node, zone: whose.
        ts_ns: int64, the readings, ascending.
        blocks: int64 [reading, order], free blocks of just that order.
    """

    node: int
    zone: str
    ts_ns: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]

    @property
    def pages(self) -> npt.NDArray[np.int64]:
        """Free pages at each reading."""
        return self.blocks @ (1 << np.arange(self.blocks.shape[1]))

    def unusable(self, order: int) -> npt.NDArray[np.float64]:
        """Share of the free memory that lies in blocks too small for `order`, at each reading; 0 where nothing is free.

        The kernel's own measure (mm/vmstat.c, unusable_free_index).
        """
        pages = self.pages
        small = self.blocks[:, :order] @ (1 << np.arange(min(order, self.blocks.shape[1])))
        return np.asarray(small / np.maximum(pages, 1), np.float64)

    def to_json(self) -> dict[str, Any]:
        """First, last and least numbers of free blocks by order; whole series stand in the table `counters`."""
        return {
            "node": self.node,
            "zone": self.zone,
            "readings": len(self.ts_ns),
            "blocks_first": self.blocks[0].tolist(),
            "blocks_last": self.blocks[-1].tolist(),
            "blocks_least": self.blocks.min(axis=0).tolist(),
            "blocks_most": self.blocks.max(axis=0).tolist(),
            "unusable_for_2m_first": float(self.unusable(HUGE_ORDER)[0]),
            "unusable_for_2m_last": float(self.unusable(HUGE_ORDER)[-1]),
            "unusable_for_2m_most": float(self.unusable(HUGE_ORDER).max()),
        }


def free_blocks(series: CounterSeries) -> list[FreeBlocks]:
    """Every zone that the counters name, in order of node and name. A reading that lacks an order counts 0 there."""
    zones: dict[tuple[int, str], dict[int, str]] = {}
    for name in series.names:
        match = _NAME.fullmatch(name)
        if match and int(match[3]) <= MAX_ORDER:
            zones.setdefault((int(match[1]), match[2]), {})[int(match[3])] = name
    found = []
    for (node, zone), names in sorted(zones.items()):
        parts = {order: series.of(name) for order, name in names.items()}
        ts = np.unique(np.concatenate([times for times, _ in parts.values()]))
        blocks = np.zeros((len(ts), max(parts) + 1), np.int64)
        for order, (times, values) in parts.items():
            blocks[np.searchsorted(ts, times), order] = np.minimum(values, np.uint64(_MOST)).astype(np.int64)
        found.append(FreeBlocks(node, zone, ts, blocks))
    return found
