"""The walk of the page tables, over tables written by hand; every expected leaf is counted by hand too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collect.errors import HostError
from collect.kcore import KERNEL_IMAGE_BASE
from collect.pagetables import Leaves, Walker, frames_of, normalise, runs
from collect.schema import Level, Pte

MASK = (1 << 52) - 1
RW = int(Pte.P | Pte.RW | Pte.A | Pte.D | Pte.G | Pte.NX)
RO = int(Pte.P | Pte.A | Pte.D | Pte.G | Pte.NX)
TABLE = int(Pte.P | Pte.RW | Pte.USER | Pte.A)
LARGE, LARGE_PAT = 1 << 7, 1 << 12
ENCRYPTION = 1 << 47
PAGE_OFFSET_4, PAGE_OFFSET_5 = 0xFFFF_9000_4000_0000, 0xFF11_0000_8000_0000
TOP = 0xFFFF_FFFF_8200_0000
GIG = 1 << 18


def leaf(pfn: int, attrs: int = RW) -> int:
    return pfn << 12 | attrs


def absent(pfn: int) -> int:
    """A leaf taken out of the map: present bit and PSE off, the frame inverted (asm/pgtable.h, pfn_pte). That knows no
    size, so in a large entry the address bits below the leaf's size are all ones, where its PAT bit was: tests/recordings.
    """
    return ~(pfn << 12) & MASK & ~0xFFF | RW & ~int(Pte.P)


class FakeKcore:
    """Page tables in frames of their own, from frame 0x100 up, and a kernel that maps memory at `page_offset`."""

    def __init__(self, levels: int = 4, max_pfn: int = 3 * GIG) -> None:
        self.paging_levels, self.max_pfn, self.top_pgt = levels, max_pfn, TOP
        self.page_offset = PAGE_OFFSET_4 if levels == 4 else PAGE_OFFSET_5
        self._next = 0x100
        self._tables: dict[int, np.ndarray] = {TOP: np.zeros(512, np.uint64)}
        self.n_reads = 0

    def read_u64(self, virtual: int) -> int:
        return int(self._tables[virtual & ~0xFFF][(virtual & 0xFFF) // 8])

    def table(self, virtual: int) -> np.ndarray:
        self.n_reads += 1
        return self._tables[virtual]

    def new_table(self) -> int:
        """Frame of a fresh table."""
        self._next += 1
        self._tables[self.page_offset + (self._next << 12)] = np.zeros(512, np.uint64)
        return self._next

    def put(self, address: int, level: Level, entry: int) -> None:
        """Write the entry that maps an address at a level, with the tables above it."""
        table = self._tables[TOP]
        for shift in [48, 39, 30, 21, 12][5 - self.paging_levels :]:
            i = address >> shift & 511
            if shift == 3 + 9 * level:
                table[i] = entry
                return
            if not table[i]:
                table[i] = self.new_table() << 12 | TABLE
            table = self._tables[self.page_offset + (int(table[i]) & MASK & ~ENCRYPTION & ~0xFFF)]

    def map(self, pfn: int, level: Level, entry: int) -> None:
        self.put(self.page_offset + (pfn << 12), level, entry)

    def walker(self, mask: int = MASK) -> Walker:
        return Walker(self, mask)  # type: ignore[arg-type]


def listed(leaves: Leaves) -> list[tuple[int, int, int]]:
    return [(int(pfn), int(level), int(attrs)) for pfn, level, attrs in zip(*leaves, strict=True)]


@pytest.fixture(params=[4, 5], ids=["4 levels", "5 levels"])
def kcore(request: pytest.FixtureRequest) -> FakeKcore:
    """Three gigabytes: one with 2M and 4K leaves and holes; one 1G leaf; one hole."""
    fake = FakeKcore(request.param)
    fake.map(0, Level.K4, leaf(0, RO))
    fake.map(1, Level.K4, absent(1))
    fake.map(511, Level.K4, leaf(511, RW | Pte.PAT))
    fake.map(512, Level.M2, leaf(512, RW | LARGE))
    fake.map(1536, Level.M2, leaf(1536, RO | LARGE | LARGE_PAT))
    fake.map(2048, Level.M2, absent(2048))
    fake.map(GIG - 512, Level.K4, leaf(GIG - 512))
    fake.map(GIG, Level.G1, leaf(GIG, RW | LARGE))
    return fake


LEAVES = [
    (0, 1, RO),
    (1, 1, RW & ~int(Pte.P)),
    (511, 1, RW | Pte.PAT),
    (512, 2, RW),
    (1536, 2, RO | Pte.PAT),
    (2048, 2, RW & ~int(Pte.P)),
    (GIG - 512, 1, RW),
    (GIG, 3, RW),
]


def test_every_leaf_is_found_and_holes_have_none(kcore: FakeKcore) -> None:
    assert listed(kcore.walker().direct_map()) == LEAVES


def test_whoever_walks_may_do_something_else_after_each_gigabyte(kcore: FakeKcore) -> None:
    walker, pauses = kcore.walker(), []
    assert listed(walker.direct_map(lambda: pauses.append(1))) == LEAVES
    assert len(pauses) == walker.n_gigs > 1


def test_a_range_is_walked_alone(kcore: FakeKcore) -> None:
    walker = kcore.walker()
    assert listed(walker.gigs(np.array([1], np.uint64))) == LEAVES[-1:]
    assert listed(walker.gigs(np.array([1, 0], np.uint64))) == LEAVES, "in order of address, as always"
    assert listed(walker.gigs(np.array([2], np.uint64))) == []
    assert listed(walker.gigs(np.empty(0, np.uint64))) == []


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (0, LEAVES[:3]),
        (1, LEAVES[3:4]),
        (2, []),
        (3, LEAVES[4:5]),
        (4, LEAVES[5:6]),
        (511, LEAVES[6:7]),
        (512, LEAVES[7:]),
        (700, LEAVES[7:]),
        (1024, []),
    ],
)
def test_a_frame_is_walked_alone_unless_one_entry_maps_its_gigabyte(
    kcore: FakeKcore, frame: int, expected: list[tuple[int, int, int]]
) -> None:
    assert listed(kcore.walker().frame(frame)) == expected


def test_memory_that_ends_within_a_gigabyte_is_walked_to_its_end() -> None:
    kcore = FakeKcore(max_pfn=GIG + 1)
    kcore.map(GIG, Level.K4, leaf(GIG))
    assert kcore.walker().n_gigs == 2
    assert listed(kcore.walker().direct_map()) == [(GIG, 1, RW)]


def test_a_gigabyte_that_is_not_present_is_still_a_leaf() -> None:
    kcore = FakeKcore()
    kcore.map(GIG, Level.G1, absent(GIG))
    assert listed(kcore.walker().direct_map()) == [(GIG, 3, RW & ~int(Pte.P))]
    assert listed(kcore.walker().frame(600)) == [(GIG, 3, RW & ~int(Pte.P))]


def test_position_tells_frames_in_the_direct_map_whatever_entries_say() -> None:
    kcore = FakeKcore()
    kcore.map(7, Level.K4, leaf(0xABCDEF))
    assert listed(kcore.walker().direct_map()) == [(7, 1, RW)]


def test_the_encryption_bit_is_an_attribute_and_no_part_of_an_address() -> None:
    kcore = FakeKcore()
    kcore.map(512, Level.M2, leaf(512, RW | LARGE | ENCRYPTION))
    kcore.map(5, Level.K4, leaf(5, RW | ENCRYPTION))
    for table in kcore._tables.values():
        tables = (table & np.uint64(0x1FF) == np.uint64(TABLE)) & (table != 0)
        table[tables] |= np.uint64(ENCRYPTION)
    assert listed(kcore.walker(MASK & ~ENCRYPTION).direct_map()) == [(5, 1, RW | ENCRYPTION), (512, 2, RW | ENCRYPTION)]


@pytest.mark.parametrize("levels", [4, 5])
def test_the_image_is_mapped_where_its_entries_say(levels: int) -> None:
    kcore = FakeKcore(levels)
    text = 0x1_0000
    kcore.put(KERNEL_IMAGE_BASE + (16 << 20), Level.M2, leaf(text, RO | LARGE))
    kcore.put(KERNEL_IMAGE_BASE + (18 << 20), Level.M2, leaf(text + 512, RO | LARGE | LARGE_PAT))
    kcore.put(KERNEL_IMAGE_BASE + (20 << 20), Level.K4, leaf(text + 1024, RO))
    kcore.put(KERNEL_IMAGE_BASE + (20 << 20) + 4096, Level.K4, absent(text + 1025))
    kcore.put(KERNEL_IMAGE_BASE + (22 << 20), Level.M2, absent(text + 1536))
    assert listed(kcore.walker().kernel_image()) == [
        (text, 2, RO),
        (text + 512, 2, RO | Pte.PAT),
        (text + 1024, 1, RO),
        (text + 1025, 1, RW & ~int(Pte.P)),
        (text + 1536, 2, RW & ~int(Pte.P)),
    ]


def test_modules_in_the_images_range_may_leave_an_empty_table() -> None:
    kcore = FakeKcore()
    kcore.put(KERNEL_IMAGE_BASE, Level.M2, leaf(512, RO | LARGE))
    kcore.put(KERNEL_IMAGE_BASE + (512 << 20), Level.K4, leaf(5))
    kcore.put(KERNEL_IMAGE_BASE + (512 << 20), Level.K4, 0)
    assert listed(kcore.walker().kernel_image()) == [(512, 2, RO)]


@pytest.mark.parametrize("entry", [0, leaf(0, RW | LARGE)])
def test_an_image_of_unknown_layout_is_refused(entry: int) -> None:
    kcore = FakeKcore()
    kcore.put(KERNEL_IMAGE_BASE, Level.G1, entry)
    with pytest.raises(HostError, match="layout is unknown"):
        kcore.walker().kernel_image()


@pytest.mark.parametrize("level", [Level.M2, Level.K4])
@pytest.mark.parametrize("walk", [Walker.direct_map, lambda walker: walker.frame(1)], ids=["whole", "frame"])
def test_an_empty_table_is_no_hole_but_memory_that_could_not_be_read(
    level: Level, walk: Callable[[Walker], Leaves]
) -> None:
    kcore = FakeKcore()
    kcore.map(512, level, leaf(512))
    kcore.map(512, level, 0)
    with pytest.raises(HostError, match="empty page table"):
        walk(kcore.walker())


@pytest.mark.parametrize("levels", [4, 5])
def test_the_frame_behind_any_address_is_found(levels: int) -> None:
    kcore = FakeKcore(levels)
    area = 0xFFFF_FFFF_C000_0000
    kcore.put(area, Level.K4, leaf(0x1234, RO | ENCRYPTION))
    kcore.put(area + 4096, Level.K4, absent(0x1235))
    kcore.put(area + (2 << 20), Level.M2, leaf(512, RO | LARGE | LARGE_PAT))
    kcore.put(area + (4 << 20), Level.M2, absent(1024))
    kcore.put(area - (1 << 30), Level.G1, leaf(GIG, RW | LARGE))
    found = {
        area: 0x1234,
        area + 4095: 0x1234,
        area + 4096: None,
        area + 8192: None,
        area + (2 << 20) + 0x5000: 512 + 5,
        area + (4 << 20): None,
        area + (6 << 20): None,
        area - (1 << 30) + 0x1234_5000: GIG + 0x12345,
        area - (2 << 30): None,
        0xFFFF_9000_0000_0000: None,
    }
    walker = kcore.walker(MASK & ~ENCRYPTION)
    assert {address: walker.frame_at(address) for address in found} == found


def test_a_walk_reads_each_table_once(kcore: FakeKcore) -> None:
    kcore.walker().direct_map()
    assert kcore.n_reads == 3, "one of 2M entries, two of 4K entries"


@pytest.mark.parametrize(
    ("entry", "level", "attrs"),
    [
        (0, Level.NONE, 0),
        (leaf(0x12345), Level.K4, RW),
        (leaf(0x12345, RW | Pte.PAT), Level.K4, RW | Pte.PAT),
        (leaf(0x200, RW | LARGE), Level.M2, RW),
        (leaf(0x200, RW | LARGE | LARGE_PAT), Level.M2, RW | Pte.PAT),
        (leaf(GIG, RO | LARGE | LARGE_PAT), Level.G1, RO | Pte.PAT),
        (absent(0x12345), Level.K4, RW & ~int(Pte.P)),
        (absent(0x200), Level.M2, RW & ~int(Pte.P)),
        (leaf(0x12345, RW | 1 << 9 | 1 << 58), Level.K4, RW | 1 << 9 | 1 << 58),
    ],
)
def test_entries_of_all_levels_are_brought_into_one_form(entry: int, level: Level, attrs: int) -> None:
    [found] = normalise(np.array([entry], np.uint64), np.array([level], np.uint8), MASK).tolist()
    assert found == attrs


@settings(deadline=None)
@given(
    st.sampled_from([Level.K4, Level.M2, Level.G1]),
    st.integers(0, (1 << 40) - 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_frame_comes_back_from_its_entry(level: Level, pfn: int, present: bool, pat: bool, encrypted: bool) -> None:
    mask = MASK & ~ENCRYPTION
    pfn = pfn & ~{Level.K4: 0, Level.M2: 511, Level.G1: GIG - 1}[level] & mask >> 12
    entry = leaf(pfn, RW | (LARGE if level > Level.K4 else 0)) if present else absent(pfn) & ~ENCRYPTION
    entry |= (int(Pte.PAT) if level == Level.K4 else LARGE_PAT) if pat else 0
    entry |= ENCRYPTION if encrypted else 0
    entries, levels = np.array([entry], np.uint64), np.array([level], np.uint8)
    assert frames_of(entries, levels, mask).tolist() == [pfn]
    pat = pat and (present or level == Level.K4)
    expected = (RW if present else RW & ~int(Pte.P)) | (int(Pte.PAT) if pat else 0) | (ENCRYPTION if encrypted else 0)
    assert normalise(entries, levels, mask).tolist() == [expected]


def test_a_run_ends_at_a_gap_another_level_or_another_key() -> None:
    pfn = np.array([0, 1, 2, 4, 5, 512, 1024, 1536], np.uint64)
    level = np.array([1, 1, 1, 1, 1, 2, 2, 2], np.uint8)
    attrs = np.array([3, 3, 3, 3, 1, 3, 3, 3], np.uint64)
    read = np.array([9, 9, 9, 9, 9, 9, 9, 8], np.uint64)
    assert runs(pfn, level, attrs).tolist() == [0, 3, 4, 5]
    assert runs(pfn, level, attrs, read).tolist() == [0, 3, 4, 5, 7]
    assert runs(pfn[:0], level[:0], attrs[:0]).tolist() == []


def test_neighbours_are_as_far_apart_as_their_level_is_large() -> None:
    pfn = np.array([0, 512, 1023, 2 * GIG, 3 * GIG], np.uint64)
    assert runs(pfn, np.array([2, 2, 2, 3, 3], np.uint8)).tolist() == [0, 2, 3]


def test_memory_that_kcore_does_not_list_is_found_by_its_entries(kcore: FakeKcore) -> None:
    """As a DIMM that was added and is not online yet."""
    assert kcore.walker().mapped_gigs(1024) == 2
    kcore.map(700 * GIG, Level.G1, leaf(700 * GIG, RW | LARGE))
    walker = kcore.walker()
    assert walker.mapped_gigs(1024) == 701
    assert walker.mapped_gigs(700) == 2, "beyond the limit lies another area of the kernel's"
    assert listed(walker.direct_map()) == LEAVES
    walker.reach(701 * GIG)
    assert listed(walker.direct_map()) == [*LEAVES, (700 * GIG, 3, RW)]


def test_the_area_of_a_kernel_that_is_not_randomised_is_searched_in_few_reads(kcore: FakeKcore) -> None:
    """32 PB with 5 levels, 64 TB with 4."""
    reads = 0
    read = kcore.read_u64

    def counting(virtual: int) -> int:
        nonlocal reads
        reads += 1
        return read(virtual)

    kcore.read_u64 = counting  # type: ignore[method-assign]
    assert kcore.walker().mapped_gigs(32 << 20 if kcore.paging_levels == 5 else 64 << 10) == 2
    assert reads < 2000
