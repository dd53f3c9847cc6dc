"""The reader of the page rings, over files laid out as the maps of collect/bpf/page_rings.c, against a list for each CPU."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collect import page_events, page_ring
from collect.page_ring import EVENTS_PER_CHUNK, MAX_CHUNKS, POSITION, SLACK, PageRings, is_sampled, ring_chunks
from collect.records import PAGE_EVENT

TEXT = (Path(page_ring.__file__).parent / "bpf" / "page_rings.c").read_text()
N_CPUS = 2
N_EVENTS = EVENTS_PER_CHUNK


class FakeRings:
    """The programs' side: rings of one chunk for each CPU."""

    def __init__(self) -> None:
        self.chunks_fd, self.positions_fd = os.memfd_create("chunks"), os.memfd_create("positions")
        n_bytes = N_CPUS * N_EVENTS * PAGE_EVENT.itemsize
        os.ftruncate(self.chunks_fd, -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        os.ftruncate(self.positions_fd, mmap.PAGESIZE)
        self.events = np.frombuffer(mmap.mmap(self.chunks_fd, 0), PAGE_EVENT, N_CPUS * N_EVENTS)
        self.events = self.events.reshape(N_CPUS, N_EVENTS)
        self.positions = np.frombuffer(mmap.mmap(self.positions_fd, 0), POSITION, N_CPUS)

    def close(self) -> None:
        os.close(self.chunks_fd)
        os.close(self.positions_fd)

    def take(self, cpu: int) -> int | None:
        """The next place, as emit_other_page takes it; None where the ring is full or silent."""
        position = self.positions[cpu]
        if position["head"] >= position["limit"]:
            if position["limit"]:
                position["n_lost"] += 1
            return None
        position["head"] += 1
        return int(position["head"]) - 1

    def write(self, cpu: int, place: int, number: int) -> None:
        event = self.events[cpu, place % N_EVENTS]
        assert event["ts"] == 0, "its last event was read, and zeros put there"
        event["what"], event["more"], event["ts"] = number, ~np.uint64(number), number + 1

    def submit(self, cpu: int, number: int) -> None:
        place = self.take(cpu)
        assert place is not None
        self.write(cpu, place, number)


@pytest.fixture
def kernel() -> Iterator[FakeRings]:
    fake = FakeRings()
    yield fake
    fake.close()


def reader(kernel: FakeRings, sample: int | None = 1) -> PageRings:
    rings = PageRings(kernel.chunks_fd, kernel.positions_fd, N_CPUS, N_EVENTS // EVENTS_PER_CHUNK)
    if sample is not None:
        rings.start(sample)
    return rings


def numbers(events: np.ndarray) -> list[int]:
    assert (events["ts"] == events["what"] + np.uint64(1)).all() and (events["more"] == ~events["what"]).all()
    return [int(number) for number in events["what"]]


def test_until_it_starts_nothing_is_recorded_and_nothing_counted_as_lost(kernel: FakeRings) -> None:
    rings = reader(kernel, sample=None)
    assert kernel.take(0) is None
    assert (rings.n_lost, rings.used) == (0, 0)
    drained = rings.drain()
    assert len(drained) == 0 and drained.dtype == PAGE_EVENT
    rings.start(1)
    assert kernel.take(0) == 0


def test_everything_is_drained_once_cpu_by_cpu_and_its_place_given_back(kernel: FakeRings) -> None:
    rings = reader(kernel)
    for number in range(6):
        kernel.submit(1 - number % 2, number)
    assert rings.used == 3 / N_EVENTS
    assert numbers(rings.drain()) == [1, 3, 5, 0, 2, 4]
    assert rings.used == 0
    assert not kernel.events["ts"].any()
    assert kernel.positions["limit"].tolist() == [3 + N_EVENTS - SLACK] * N_CPUS
    assert len(rings.drain()) == 0


def test_a_place_that_was_taken_and_not_written_stops_its_ring_and_no_other(kernel: FakeRings) -> None:
    rings = reader(kernel)
    kernel.submit(0, 10)
    late = kernel.take(0)
    assert late is not None
    kernel.submit(0, 12)
    kernel.submit(1, 20)
    assert numbers(rings.drain()) == [10, 20]
    assert numbers(rings.drain()) == []
    assert kernel.positions["limit"][0] == 1 + N_EVENTS - SLACK, "no room is given for what was not read"
    kernel.write(0, late, 11)
    assert numbers(rings.drain()) == [11, 12]


def test_what_was_drained_does_not_change_when_the_ring_does(kernel: FakeRings) -> None:
    rings = reader(kernel)
    kernel.submit(0, 1)
    first = rings.drain()
    for number in range(2, 2 + N_EVENTS):
        kernel.submit(0, number)
        rings.drain()
    assert numbers(first) == [1]


def test_a_full_ring_counts_what_it_has_no_room_for(kernel: FakeRings) -> None:
    rings = reader(kernel)
    places = [kernel.take(0) for _ in range(N_EVENTS)]
    room = N_EVENTS - SLACK
    assert [place is not None for place in places] == [True] * room + [False] * SLACK
    assert rings.n_lost == SLACK
    assert rings.used == room / N_EVENTS
    assert rings.drain().size == 0, "none of them was written"


def test_those_that_passed_the_check_together_find_places_behind_the_limit(kernel: FakeRings) -> None:
    """As many as SLACK: their places are not the reader's yet, and all of them are drained in order."""
    rings = reader(kernel)
    for number in range(N_EVENTS - SLACK):
        kernel.submit(0, number)
    for number in range(N_EVENTS - SLACK, N_EVENTS):
        kernel.positions["head"][0] += 1
        kernel.write(0, number, number)
    assert rings.used == 1
    assert numbers(rings.drain()) == list(range(N_EVENTS))
    assert rings.n_lost == 0


def test_it_reads_over_the_end_of_the_ring(kernel: FakeRings) -> None:
    rings = reader(kernel)
    n, step = 0, N_EVENTS - SLACK - 1
    for _ in range(5):
        for number in range(n, n + step):
            kernel.submit(1, number)
        assert numbers(rings.drain()) == list(range(n, n + step))
        n += step
    assert n > 2 * N_EVENTS


@pytest.mark.parametrize("sample", [1, 4, 64, 65536])
def test_the_blocks_whose_hash_is_below_the_mark_are_one_in_so_many(kernel: FakeRings, sample: int) -> None:
    """Also of neighbouring blocks, which is what a load takes: of any 2^20 in a row, within one in a thousand of them."""
    reader(kernel, sample)
    mark = int(kernel.positions["sample"][0])
    factor = re.search(r"\(u32\)\(\(pfn >> 9\) \* (\d+)U\) < below;", TEXT)
    assert factor
    blocks = np.arange(12345, 12345 + (1 << 20), dtype=np.uint64)
    hashes = blocks * np.uint64(factor[1]) & np.uint64(0xFFFF_FFFF)
    chosen = int((hashes < mark).sum())
    assert abs(chosen - (1 << 20) // sample) <= (1 << 20) // 1000 if sample > 1 else chosen == 1 << 20
    for place in (0, 511):
        ours = is_sampled(blocks * np.uint64(512) + np.uint64(place), sample)
        assert (ours == (hashes < mark)).all(), "what Python samples itself is what the programs sample"


def test_no_block_is_recorded_once_sampling_is_off(kernel: FakeRings) -> None:
    rings = reader(kernel)
    rings.set_sample(0)
    assert kernel.positions["sample"].tolist() == [0] * N_CPUS
    rings.set_sample(4)
    assert kernel.positions["sample"].tolist() == [1 << 30] * N_CPUS


@pytest.mark.parametrize("n_cpus", [1, 2, 3, 64, 500, 8192])
@pytest.mark.parametrize("ring_bytes", [1, 1 << 20, 64 << 20])
def test_rings_are_powers_of_two_within_the_memory_that_they_may_take(n_cpus: int, ring_bytes: int) -> None:
    n = ring_chunks(n_cpus, ring_bytes)
    chunk_bytes = EVENTS_PER_CHUNK * PAGE_EVENT.itemsize
    assert 1 <= n <= MAX_CHUNKS and n & (n - 1) == 0
    assert n == 1 or n * n_cpus * chunk_bytes <= ring_bytes
    assert n == MAX_CHUNKS or 2 * n * n_cpus * chunk_bytes > ring_bytes


steps = st.lists(
    st.tuples(st.sampled_from(["submit", "take", "write", "drain"]), st.integers(0, N_CPUS - 1), st.integers(1, 1100)),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_it_agrees_with_a_list_for_each_cpu(steps: list[tuple[str, int, int]]) -> None:
    kernel = FakeRings()
    try:
        rings = reader(kernel)
        lists: list[list[list[int | bool]]] = [[] for _ in range(N_CPUS)]  # number, place, whether it is written
        n = n_lost = 0

        def drained() -> list[int]:
            out = []
            for waiting in lists:
                while waiting and waiting[0][2]:
                    out.append(int(waiting.pop(0)[0]))
            return out

        for step, cpu, count in steps:
            unwritten = [row for row in lists[cpu] if not row[2]]
            if step == "drain":
                assert numbers(rings.drain()) == drained()
            elif step == "write":
                for row in unwritten[count % 3 :: 2]:
                    kernel.write(cpu, int(row[1]), int(row[0]))
                    row[2] = True
            else:
                for _ in range(count):
                    place = kernel.take(cpu)
                    if place is None:
                        n_lost += 1
                        continue
                    lists[cpu].append([n, place, step == "submit"])
                    if step == "submit":
                        kernel.write(cpu, place, n)
                    n += 1
            assert rings.used == max(map(len, lists)) / N_EVENTS
            assert rings.n_lost == n_lost
        assert numbers(rings.drain()) == drained()
    finally:
        kernel.close()


# --- the same in C ---------------------------------------------------------------------------------------------------


def body(struct: str) -> list[tuple[str, str]]:
    """Type and name of each member of a struct in collect/bpf/page_rings.c."""
    found = re.search(rf"struct {struct} {{(.*?)}};", TEXT, re.DOTALL)
    assert found
    return re.findall(r"^\s*(\w+(?: \w+)?) (\w+)(?:\[\w+\])?;", found[1], re.MULTILINE)


def test_structs_and_sizes_are_those_of_the_programs() -> None:
    defines = dict(re.findall(r"^#define (\w+) (\d+)$", TEXT, re.MULTILINE))
    assert int(defines["EVENTS_PER_CHUNK"]) == EVENTS_PER_CHUNK
    assert body("page_event") == [("u64", name) for name in PAGE_EVENT.names or ()]
    assert body("page_position") == [("u64", name) for name in POSITION.names or ()]
    assert re.findall(r"pad\[(\d+)\]", TEXT) == ["12"] and POSITION["pad"].shape == (12,)
    assert POSITION.itemsize == 128, "two cache lines"
    assert EVENTS_PER_CHUNK * PAGE_EVENT.itemsize < 4 << 20, "KMALLOC_MAX_SIZE"


def test_the_parts_of_an_event_lie_where_the_programs_put_them() -> None:
    line = re.search(r"at->what = (.*);\n\tat->more = (.*);", TEXT)
    assert line
    what = {name.strip("() ").replace("u64)", ""): int(at or 0) for name, at in parts(line[1])}
    pfn, order, kind, event = (
        page_events.PFN_BITS, page_events.ORDER_BITS, page_events.TYPE_BITS, page_events.EVENT_BITS
    )  # fmt: skip
    assert what == {
        "pfn": 0, "order": pfn, "migratetype": pfn + order, "event": pfn + order + kind, "cpu": pfn + order + kind + event
    }  # fmt: skip
    assert line[2] == "gfp | bpf_get_current_pid_tgid() << 32"


def parts(sum_of: str) -> list[tuple[str, str]]:
    return re.findall(r"(?:\(u64\))?(\w+)(?: << (\d+))?(?: \||$)", sum_of)
