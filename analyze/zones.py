"""Where in physical memory the leaves of a map lie: by zone, and by node where the trace knows nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.directmap import Runs
from collect.schema import LEAF_PAGES, Level
from collect.trace import Trace

__all__ = ["Zone", "Zones", "pages_by_zone", "zones_of"]

_MAX_DMA_PFN = 1 << (24 - 12)
_MAX_DMA32_PFN = 1 << (32 - 12)
"""arch/x86/include/asm/dma.h: 16 MB and 4 GB, fixed on x86."""

_MOST = 4096
"""Zones of a trace that are believed: 1,024 nodes (CONFIG_NODES_SHIFT of 10) of four."""


@dataclass(frozen=True)
class Zone:
    """Pages [first, end) of one zone; `end` may lie past the end of memory."""

    name: str
    first: int
    end: int


@dataclass(frozen=True)
class Zones:
    """Zones in order of page frame.

    Attributes:
        recorded: whether the trace says where they lie; else they are x86's fixed bounds.
        nodes: whether the names tell nodes apart.
        note: where they are from, for people.
    """

    zones: tuple[Zone, ...]
    recorded: bool
    nodes: bool
    note: str


def zones_of(trace: Trace) -> Zones:
    """What a trace knows of zones and nodes: `memory.zones` of the manifest, or x86's bounds."""
    memory = trace.manifest["memory"]
    listed = memory.get("zones")
    recorded = _recorded(listed, memory["max_pfn"]) if isinstance(listed, dict) else ()
    if recorded:
        return Zones(recorded, True, True, "zones and nodes as /proc/zoneinfo had them at the start")
    fixed = (
        Zone("DMA", 0, _MAX_DMA_PFN),
        Zone("DMA32", _MAX_DMA_PFN, _MAX_DMA32_PFN),
        Zone("Normal", _MAX_DMA32_PFN, 1 << 40),
    )
    node = trace.manifest["cpu"].get("nodes_possible")
    if node == "0":
        return Zones(fixed, False, False, "zones by x86's fixed bounds; the machine has one node")
    return Zones(fixed, False, False, "zones by x86's fixed bounds; the trace does not record nodes")


def _recorded(listed: dict[object, object], max_pfn: int) -> tuple[Zone, ...]:
    """Zones of a manifest; none of them where one is not a pair of page frame numbers."""
    zones = []
    for name, pair in list(listed.items())[: _MOST + 1]:
        if not (
            isinstance(name, str)
            and isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(pfn, int) and 0 <= pfn <= 1 << 40 for pfn in pair)
            and pair[0] < pair[1]
        ):
            return ()
        zones.append(Zone(name, pair[0], min(pair[1], max(max_pfn, pair[0] + 1))))
    return tuple(sorted(zones, key=lambda zone: zone.first)) if len(zones) <= _MOST else ()


def pages_by_zone(runs: Runs, zones: Zones) -> list[tuple[str, npt.NDArray[np.int64]]]:
    """4 KiB pages by Level (4 cells) for each zone that has any, and for what lies in none ("no zone").

    Zones of several nodes may overlap (spans, with holes): a page counts in the first that holds it.
    """
    begin = runs.pfn
    end = begin + runs.n_leaves * np.array(LEAF_PAGES, np.int64)[runs.level]
    total = _by_level(runs.level, end - begin)
    found = []
    at = 0  # pages below are in a zone already
    for zone in zones.zones:
        first = max(zone.first, at)
        inside = np.clip(np.minimum(end, zone.end) - np.maximum(begin, first), 0, None)
        pages = _by_level(runs.level, inside)
        at = max(at, zone.end)
        if pages.any():
            found.append((zone.name, pages))
            total = total - pages
    return [*found, ("no zone", total)] if total.any() else found


def _by_level(level: npt.NDArray[np.uint8], pages: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    sums = np.zeros(len(Level), np.int64)
    np.add.at(sums, level, pages)
    return sums
