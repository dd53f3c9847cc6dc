"""Memory that comes or goes while a recording runs is followed by everyone who has to know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collect.memory_watch import MemoryWatch
from collect.records import CHANGE
from collect.schema import ChangeKind

PAGE_OFFSET, GIG = 0xFFFF_9000_4000_0000, 1 << 18
VMALLOC_BASE, KFENCE_POOL = 0xFFFF_FFFF_8200_0000, 0xFFFF_FFFF_8200_0008


class Kcore:
    """One gigabyte of RAM at first; `now` is what a reopening finds."""

    def __init__(self) -> None:
        self.page_offset = PAGE_OFFSET
        self.max_pfn, self.ranges = GIG, [[1, GIG]]
        self.now = self.ranges
        self.words = {VMALLOC_BASE: PAGE_OFFSET + (1 << 40), KFENCE_POOL: 0}

    def read_u64(self, at: int) -> int:
        return self.words[at]

    def reopen(self) -> None:
        self.ranges, self.max_pfn = self.now, self.now[-1][1]


class Walker:
    def __init__(self, mapped: int) -> None:
        self.n_gigs, self.mapped = 1, mapped

    def mapped_gigs(self, limit: int) -> int:
        return min(self.mapped, limit)

    def reach(self, end_pfn: int) -> None:
        self.n_gigs = max(self.n_gigs, -(-end_pfn // GIG))


class World:
    """What a watch is told of and tells."""

    def __init__(self, mapped: int = 1) -> None:
        self.kcore, self.walker, self.rows = Kcore(), Walker(mapped), SimpleNamespace(max_pfn=GIG)
        self.memory: dict[str, Any] = {"max_pfn": GIG, "ranges": self.kcore.ranges, "kfence_pool": None}
        symbols = {"vmalloc_base": VMALLOC_BASE, "__kfence_pool": KFENCE_POOL}
        table = SimpleNamespace(address=symbols.get)
        self.watch = MemoryWatch(self.kcore, table, self.walker, self.rows, self.memory)  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    return World()


def change(kind: ChangeKind, pfn: int, n_pages: int) -> np.ndarray:
    record = np.zeros(1, CHANGE)
    record["kind"], record["address"], record["n_pages"] = kind, PAGE_OFFSET + (pfn << 12), n_pages
    return record


def test_a_range_that_came_is_read_again_once_and_moves_the_end_of_memory(world: World) -> None:
    world.watch.note(change(ChangeKind.HOTPLUG_ADD, 2 * GIG, 32768))
    world.watch.note(change(ChangeKind.HOTPLUG_REMOVE, 2 * GIG, 32768))
    world.kcore.now = [[1, GIG], [2 * GIG, 2 * GIG + 32768]]
    assert (world.rows.max_pfn, world.memory["max_pfn"], world.walker.n_gigs) == (*[2 * GIG + 32768] * 2, 3)
    assert world.watch.take() == [(2 * GIG, 2 * GIG + 32768)]
    assert world.kcore.max_pfn == 2 * GIG + 32768, "opened anew: page tables may lie in new memory"
    assert world.watch.take() == []


def test_the_end_of_memory_never_moves_back(world: World) -> None:
    world.watch.note(change(ChangeKind.HOTPLUG_ADD, 2 * GIG, 32768))
    world.watch.note(change(ChangeKind.HOTPLUG_REMOVE, 0, 512))
    world.watch.finish()
    assert world.memory["max_pfn"] == 2 * GIG + 32768
    assert world.memory["ranges"] == [[1, GIG]]


def test_other_changes_are_none_of_its_business(world: World) -> None:
    for kind in (ChangeKind.CPA, ChangeKind.COLLAPSE):
        world.watch.note(change(kind, 5 * GIG, 512))
    assert world.watch.take() == []
    assert world.memory["max_pfn"] == GIG


def test_memory_that_is_mapped_but_not_online_counts_from_the_start() -> None:
    world = World(mapped=4)
    assert (world.rows.max_pfn, world.memory["max_pfn"], world.walker.n_gigs) == (4 * GIG, 4 * GIG, 4)


def test_a_pool_of_kfence_that_came_late_is_in_the_manifest(world: World) -> None:
    world.watch.finish()
    assert world.memory["kfence_pool"] is None
    world.kcore.words[KFENCE_POOL] = PAGE_OFFSET + (0x1000 << 12)
    world.watch.finish()
    first, end = world.memory["kfence_pool"]
    assert first == 0x1000
    assert (end - first) % 2 == 0 and end > first
