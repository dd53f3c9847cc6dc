"""Whole replays of traces whose every number can be counted by hand, from region to flush."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from collect.schema import Moment, RegionEvent, RegionKind, Tier
from collect.trace import open_trace
from replay.policies import POLICIES
from replay.policies.choose import choose
from replay.results import PolicyResult
from replay.run import replay, run_policies
from replay.stream import Stream, decode
from tests.machine import MAX_PFN, PAGE_OFFSET, RANGES, RODATA
from tests.machine.kernel import GIGA, Machine, Steps, Task
from tests.machine.users import BPF_LOAD, FAULT, LOAD, Area, default, invalid, reset_pages

USER = Task(501, 500, "loader", 0)
OUT = Task(601, 600, "evictor", 1)


class Scattered(Machine):
    """A machine that hands out one page in each 2M frame of its third GiB, whole until then."""

    def __init__(self) -> None:
        super().__init__(1, "5.10")
        self._pages: Iterator[int] = iter(range(2 * GIGA, 3 * GIGA, 512))

    def allocate(self, n: int, *, scope: int = 0, region: int = 0, task: Task | None = None) -> list[int]:
        return [next(self._pages) for _ in range(n)]

    def counters(self) -> None:
        """No counts of free blocks: refills get what they ask for."""

    def run(self, steps: Steps) -> None:
        for _ in steps:
            pass

    def record(self, directory: Path, steps: Steps) -> Stream:
        self.recording = True
        self.run(self.snapshot(Moment.START, 0))
        start = self.tick()
        self.run(steps)
        end = self.tick()
        self.run(self.snapshot(Moment.END, 1))
        memory = {
            "max_pfn": MAX_PFN, "ranges": [list(pair) for pair in RANGES], "page_offset": PAGE_OFFSET,
            "paging_levels": 4, "rodata": list(RODATA), "kfence_pool": None,
        }  # fmt: skip
        manifest = {
            "ts_start_ns": start,
            "ts_end_ns": end,
            "kernel": {"release": "by hand", "version": "", "boot_id": "", "cmdline": "", "config": {}},
            "memory": memory,
            "recorder": {"pid": 1, "tgid": 1},
        }
        return decode(open_trace(self.recorder.write(directory, manifest)))


def images(m: Machine, n: int, n_pages: int, n_freed: int) -> Steps:
    """BPF images of a 5.10 kernel: read-only, then executable; the first `n_freed` are freed again, with a reset."""
    areas = []
    for _ in range(n):
        image = m.recorder.new_id()
        area = Area(m, USER, n_pages, RegionKind.MODULE_ALLOC, image, ("bpf_jit_binary_alloc", *BPF_LOAD))
        m.region(
            USER, RegionEvent.ALLOC, Tier.ASKED, RegionKind.BPF_IMAGE, image,
            address=area.address, n_bytes=n_pages * 4000, stack=BPF_LOAD,
        )  # fmt: skip
        yield from area.set(m, USER, BPF_LOAD, "ro")
        yield from area.set(m, USER, BPF_LOAD, "x")
        areas.append(area)
    for area in areas[:n_freed]:
        yield from area.free(m, OUT, ("bpf_jit_free",))


def secrets(m: Machine, n: int, n_freed: int) -> Steps:
    """Secret pages: unmapped before the fault returns, mapped again after the free began."""
    pages = []
    for _ in range(n):
        (pfn,), region = m.allocate(1), m.recorder.new_id()
        yield from invalid(m, USER, FAULT, pfn)
        m.region(USER, RegionEvent.ALLOC, Tier.ASKED, RegionKind.SECRET_PAGE, region, n_bytes=4096, pfns=[pfn])
        pages.append((pfn, region))
    for pfn, region in pages[:n_freed]:
        m.region(OUT, RegionEvent.FREE, Tier.ASKED, RegionKind.SECRET_PAGE, region)
        yield from default(m, OUT, ("secretmem_free_page",), pfn)


def numbers(result: PolicyResult) -> dict[str, list[float]]:
    names = (
        "split_2m", "split_2m_live_end", "split_2m_live_peak", "split_1g", "cpa_calls", "cpa_steps",
        "tlb_flushes_split", "tlb_flushes_call", "tlb_flushes_ranged", "idle_pages_peak", "idle_pages_end",
    )  # fmt: skip
    return {name: getattr(result, name).to_json() for name in names}


def expected(**values: int | tuple[int, int]) -> dict[str, list[int]]:
    return {name: [v, v] if isinstance(v, int) else list(v) for name, v in values.items()}


def test_forty_images_of_two_pages_ten_of_them_freed(tmp_path: Path) -> None:
    m = Scattered()
    stream = m.record(tmp_path / "t", images(m, 40, 2, 10))
    assert stream.requests.by_user() == {"bpf": 40}
    # 80 pages in 80 frames; 40 x (ro + x), 10 x 2 x (invalid + default); only ro and the resets reach the direct map
    assert numbers(replay(stream, POLICIES["none"])) == expected(
        split_2m=80, split_2m_live_end=60, split_2m_live_peak=80, split_1g=1, cpa_calls=120, cpa_steps=120,
        tlb_flushes_split=81, tlb_flushes_call=80, tlb_flushes_ranged=10, idle_pages_peak=0, idle_pages_end=0,
    )  # fmt: skip
    # the same, and what was reset is one entry again; its 1G entry is not, other frames of it are still split
    merged = replay(stream, *choose(["none+merge"]))
    assert merged.merges.to_json() == [20, 20]
    assert merged.split_2m_live_end.to_json() == [60, 60]
    assert merged.leaf_entries_end.lo == replay(stream, POLICIES["none"]).leaf_entries_end.lo - 20 * 511
    # G of a page that was not present is gone for good
    assert replay(stream, *choose(["none+merge:global=kept"])).merges.to_json() == [0, 0]
    # one block for all; users change it as recorded
    assert numbers(replay(stream, POLICIES["grouped"])) == expected(
        split_2m=1, split_2m_live_end=1, split_2m_live_peak=1, split_1g=(0, 1), cpa_calls=120, cpa_steps=120,
        tlb_flushes_split=(1, 2), tlb_flushes_call=80, tlb_flushes_ranged=10, idle_pages_peak=510, idle_pages_end=452,
    )  # fmt: skip
    # besides: 2 calls when the pageblock changes its type, one a page at each allocation and free, a flush a page allocated
    assert numbers(replay(stream, POLICIES["migrate-unmapped"])) == expected(
        split_2m=1, split_2m_live_end=1, split_2m_live_peak=1, split_1g=(0, 1), cpa_calls=222, cpa_steps=222,
        tlb_flushes_split=(1, 2), tlb_flushes_call=80, tlb_flushes_ranged=90, idle_pages_peak=510, idle_pages_end=452,
    )  # fmt: skip
    # images may lie in packs: nothing proves that a frame must be split; a packing makes do with one
    assert numbers(replay(stream, POLICIES["clairvoyant"])) == expected(
        split_2m=(0, 1), split_2m_live_end=(0, 1), split_2m_live_peak=(0, 1), split_1g=(0, 1), cpa_calls=(0, 120),
        cpa_steps=(0, 120), tlb_flushes_split=(0, 2), tlb_flushes_call=(0, 80), tlb_flushes_ranged=(0, 10),
        idle_pages_peak=(0, 510), idle_pages_end=(0, 452),
    )  # fmt: skip
    assert all(
        replay(stream, POLICIES[name]).identity
        for name in ("rox-cache", "pageblock-flip", "secretmem-pool", "ungrouped")
    )
    # one refill: its one unmapping, the same calls on 80 pages of one block; 20 pages come back
    assert numbers(replay(stream, POLICIES["gfp-unmapped"])) == expected(
        split_2m=1, split_2m_live_end=1, split_2m_live_peak=1, split_1g=(0, 1), cpa_calls=121, cpa_steps=121,
        tlb_flushes_split=(1, 2), tlb_flushes_call=80, tlb_flushes_ranged=11, idle_pages_peak=510, idle_pages_end=452,
    )  # fmt: skip
    # room in a pack from before, beside the recorder's three programs: nothing happens; none: 512 pages made read-only by one
    # call, executable by another, in three frames (ours are alone in theirs, so three of ours are worth 512 of anybody's, thrice)
    pack = replay(stream, POLICIES["prog-pack"])
    used = 30 * -(-(8000 + 24) // 64) * 64
    assert numbers(pack) == expected(
        split_2m=(0, 3), split_2m_live_end=(0, 3), split_2m_live_peak=(0, 3), split_1g=(0, 2), cpa_calls=(0, 2),
        cpa_steps=(0, 512), tlb_flushes_split=(0, 5), tlb_flushes_call=(0, 2), tlb_flushes_ranged=0,
        idle_pages_peak=(511 - -(-8064 // 4096), 512 - -(-8064 // 4096)),
        idle_pages_end=(511 - -(-used // 4096), 512 - -(-used // 4096)),
    )  # fmt: skip
    assert (pack.split_2m.expected, pack.to_json()["expected"]["split_2m"]) == (0, 0)
    assert pack.requests == {"total": 40, "served": 40, "not_served": 0, "as_recorded": 0}


def test_513_secret_pages_three_of_them_freed(tmp_path: Path) -> None:
    m = Scattered()
    m._pages = iter(range(2 * GIGA, 4 * GIGA, 512))
    stream = m.record(tmp_path / "t", secrets(m, 513, 3))
    assert len(stream.requests) == 513
    assert (stream.requests.begin_ns < stream.requests.alloc_ns).all()
    assert numbers(replay(stream, POLICIES["none"])) == expected(
        split_2m=513, split_2m_live_end=510, split_2m_live_peak=513, split_1g=2, cpa_calls=516, cpa_steps=516,
        tlb_flushes_split=515, tlb_flushes_call=0, tlb_flushes_ranged=513, idle_pages_peak=0, idle_pages_end=0,
    )  # fmt: skip
    gfp = replay(stream, POLICIES["gfp-unmapped"])
    assert numbers(gfp) == expected(
        split_2m=2, split_2m_live_end=2, split_2m_live_peak=2, split_1g=(0, 2), cpa_calls=2, cpa_steps=2,
        tlb_flushes_split=(2, 4), tlb_flushes_call=0, tlb_flushes_ranged=2, idle_pages_peak=514, idle_pages_end=514,
    )  # fmt: skip
    assert {order: n.to_json() for order, n in gfp.refills.items()} == {9: [2, 2]}
    assert gfp.pages_unmapped.to_json() == [2, 2]
    # two blocks, each unmapped by one call that leaves its 2M entry one
    for name in ("pageblock-flip", "secretmem-pool"):
        flipped = replay(stream, POLICIES[name])
        assert numbers(flipped) == expected(
            split_2m=0, split_2m_live_end=0, split_2m_live_peak=0, split_1g=(0, 2), cpa_calls=2, cpa_steps=2,
            tlb_flushes_split=(0, 2), tlb_flushes_call=0, tlb_flushes_ranged=2, idle_pages_peak=514, idle_pages_end=514,
        )  # fmt: skip
        assert flipped.pages_unmapped.to_json() == [1024, 1024]
    (ideal,) = choose(["gfp-unmapped:variant=ideal"])
    assert numbers(replay(stream, ideal)) == numbers(replay(stream, POLICIES["pageblock-flip"]))
    assert replay(stream, POLICIES["clairvoyant"]).split_2m.to_json() == [0, 0]
    assert replay(stream, POLICIES["prog-pack"]).identity


def modules(m: Machine, n: int, n_freed: int) -> Steps:
    """Modules of four pages, each in a frame of its own: two of text, read-only and executable; all reset when freed."""
    areas = []
    for _ in range(n):
        area = Area(m, USER, 4, RegionKind.MODULE_ALLOC, 0, LOAD)
        yield from area.set(m, USER, LOAD, "ro", 0, 2)
        yield from area.set(m, USER, LOAD, "x", 0, 2)
        areas.append(area)
    for area in areas[:n_freed]:
        yield from area.free(m, OUT, ("vfree", "module_memfree", "free_module"))


def test_ten_modules_three_of_them_freed(tmp_path: Path) -> None:
    m = Scattered()
    stream = m.record(tmp_path / "t", modules(m, 10, 3))
    assert stream.requests.by_user() == {"module": 10}
    assert stream.requests.text.sum() == 20
    # 20 pages of text, and 6 of data that are reset, each in its frame; 10 x (ro + x), 3 x 4 x (invalid + default);
    # at most: all text, and the two pages of data of the module that is reset
    assert numbers(replay(stream, POLICIES["none"])) == expected(
        split_2m=26, split_2m_live_end=14, split_2m_live_peak=22, split_1g=1, cpa_calls=44, cpa_steps=44,
        tlb_flushes_split=27, tlb_flushes_call=20, tlb_flushes_ranged=3, idle_pages_peak=0, idle_pages_end=0,
    )  # fmt: skip
    # an empty cache: the block read-only by 1 call; 10 times nx and rw, 3 times rw, nx and rox; 6 pages of text are not reset.
    # steps: the block, 10 x 2 x 2 pages of text, 3 x 2 x 2 at the frees, and the reset of 6 pages of data
    empty = replay(stream, *choose(["rox-cache:old-block=no"]))
    assert numbers(empty) == expected(
        split_2m=7, split_2m_live_end=1, split_2m_live_peak=3, split_1g=(1, 2), cpa_calls=44 - 12 + 1 + 20 + 9,
        cpa_steps=1 + 40 + 12 + 12, tlb_flushes_split=(8, 9), tlb_flushes_call=20 + 1 + 20 + 9, tlb_flushes_ranged=3,
        idle_pages_peak=510, idle_pages_end=498,
    )  # fmt: skip
    assert empty.split_2m_by_user["module"].hi == 7
    assert replay(stream, POLICIES["rox-cache"]).split_2m.to_json() == [6, 7]
    # text may lie in old blocks; six pages of data that were reset need a frame, unless those split before have room
    assert replay(stream, POLICIES["clairvoyant"]).split_2m.to_json() == [0, 1]
    assert replay(stream, *choose(["clairvoyant:old-frames=left"])).split_2m.to_json() == [1, 1]
    assert replay(stream, POLICIES["gfp-unmapped"]).split_2m.to_json() == [1, 1]


def test_a_block_may_have_landed_where_memory_was_split_before(tmp_path: Path) -> None:
    """Nobody's change splits a frame and undoes itself: from then on that frame may host a refill."""
    m = Scattered()

    def steps() -> Steps:
        yield from reset_pages(m, OUT, ("somebody",), [3 * GIGA + 5])
        yield from secrets(m, 1, 0)

    stream = m.record(tmp_path / "t", steps())
    assert replay(stream, POLICIES["none"]).split_2m.to_json() == [2, 2]
    gfp = replay(stream, POLICIES["gfp-unmapped"])
    assert gfp.split_2m.to_json() == [1, 2]
    assert gfp.split_2m_live_end.to_json() == [0, 1]
    assert gfp.split_1g.to_json() == [1, 2]


@pytest.mark.parametrize("names", [(), ("none",), ("prog-pack", "none")])
def test_policies_come_in_the_order_asked_for(tmp_path: Path, names: tuple[str, ...]) -> None:
    m = Scattered()
    m.record(tmp_path / "t", images(m, 3, 1, 1))
    assert [r.policy for r in run_policies(tmp_path / "t", names)] == list(names or POLICIES)
