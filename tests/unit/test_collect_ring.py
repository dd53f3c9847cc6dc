"""The reader of ring buffers, over files laid out as the kernel lays out a ring (kernel/bpf/ringbuf.c)."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collect.errors import HostError
from collect.ring import BUSY, DISCARD, Ring

PAGE = mmap.PAGESIZE
RECORD = np.dtype([("number", "u8"), ("tail", "u4"), ("pad", "u4")])
STRIDE = 8 + RECORD.itemsize
N_PAGES = 2


class FakeRing:
    """The kernel's side: a consumer page, a producer page, and the data, written twice where the kernel maps it twice."""

    def __init__(self, n_pages: int = N_PAGES) -> None:
        self.size = n_pages * PAGE
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * self.size)

    def close(self) -> None:
        os.close(self.fd)

    @property
    def consumed(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, 0))[0])

    @property
    def produced(self) -> int:
        return int(struct.unpack("<Q", os.pread(self.fd, 8, PAGE))[0])

    def _write(self, position: int, data: bytes) -> None:
        at = position % self.size
        over = max(at + len(data) - self.size, 0)
        for mapping in (0, self.size):
            os.pwrite(self.fd, data[: len(data) - over], 2 * PAGE + mapping + at)
            os.pwrite(self.fd, data[len(data) - over :], 2 * PAGE + mapping)

    def reserve(self, number: int, *, length: int = RECORD.itemsize, flags: int = BUSY) -> int:
        """Take room for a record, busy until it is committed; its position. IndexError where there is no room."""
        at, step = self.produced, -(-(8 + length) // 8) * 8
        if at + step - self.consumed > self.size - 1:
            raise IndexError("full")
        self._write(
            at, struct.pack("<II", length | flags, 0) + struct.pack("<QII", number, number & 0xFFFF, 0)[:length]
        )
        os.pwrite(self.fd, struct.pack("<Q", at + step), PAGE)
        return at

    def commit(self, position: int, *, flags: int = 0) -> None:
        self._write(position, struct.pack("<I", RECORD.itemsize | flags))

    def submit(self, number: int) -> None:
        self.commit(self.reserve(number))


@pytest.fixture
def kernel() -> Iterator[FakeRing]:
    fake = FakeRing()
    yield fake
    fake.close()


def reader(kernel: FakeRing) -> Ring:
    return Ring(kernel.fd, kernel.size // PAGE, RECORD)


def numbers(records: np.ndarray) -> list[int]:
    return [int(number) for number in records["number"]]


def test_an_empty_ring_gives_nothing(kernel: FakeRing) -> None:
    ring = reader(kernel)
    drained = ring.drain()
    assert len(drained) == 0 and drained.dtype == RECORD
    assert ring.used == 0
    assert ring.size == N_PAGES * PAGE


def test_everything_is_drained_once_and_in_order(kernel: FakeRing) -> None:
    ring = reader(kernel)
    for number in range(5):
        kernel.submit(number)
    assert ring.used == 5 * STRIDE
    drained = ring.drain()
    assert numbers(drained) == [0, 1, 2, 3, 4]
    assert drained["tail"].tolist() == [0, 1, 2, 3, 4]
    assert ring.used == 0
    assert kernel.consumed == kernel.produced, "the kernel has its room back"
    assert len(ring.drain()) == 0
    kernel.submit(5)
    assert numbers(ring.drain()) == [5]


def test_what_was_drained_does_not_change_when_the_ring_does(kernel: FakeRing) -> None:
    ring = reader(kernel)
    kernel.submit(1)
    drained = ring.drain()
    for number in range(1000, 1000 + kernel.size // STRIDE - 1):
        kernel.submit(number)
    assert numbers(drained) == [1]


def test_it_stops_at_a_record_still_being_written_and_takes_it_next_time(kernel: FakeRing) -> None:
    ring = reader(kernel)
    kernel.submit(0)
    late = kernel.reserve(1)
    kernel.submit(2)
    assert numbers(ring.drain()) == [0]
    assert numbers(ring.drain()) == []
    assert ring.used == 2 * STRIDE
    kernel.commit(late)
    assert numbers(ring.drain()) == [1, 2]


def test_a_discarded_record_is_skipped_and_its_room_given_back(kernel: FakeRing) -> None:
    ring = reader(kernel)
    kernel.submit(0)
    kernel.commit(kernel.reserve(1), flags=DISCARD)
    kernel.submit(2)
    assert numbers(ring.drain()) == [0, 2]
    assert ring.used == 0
    kernel.commit(kernel.reserve(3), flags=DISCARD)
    assert len(ring.drain()) == 0
    assert ring.used == 0


def test_it_reads_over_the_end_of_the_ring(kernel: FakeRing) -> None:
    ring = reader(kernel)
    fit = (kernel.size - 1) // STRIDE
    assert kernel.size % STRIDE, "else no record lies across the end"
    for start in range(0, 5 * fit, fit):
        for number in range(start, start + fit):
            kernel.submit(number)
        with pytest.raises(IndexError):
            kernel.reserve(0)
        assert numbers(ring.drain()) == list(range(start, start + fit))
    assert kernel.consumed > 4 * kernel.size


def test_a_record_of_another_length_is_refused(kernel: FakeRing) -> None:
    ring = reader(kernel)
    kernel.submit(0)
    kernel.commit(kernel.reserve(1, length=8))
    os.pwrite(kernel.fd, struct.pack("<Q", 2 * STRIDE), PAGE)
    os.pwrite(kernel.fd, struct.pack("<I", 8), 2 * PAGE + STRIDE)
    with pytest.raises(HostError, match="another length"):
        ring.drain()
    assert kernel.consumed == 0, "nothing was taken"


@dataclass
class Model:
    """A ring as a list: what was reserved, in order, each with its state."""

    rows: list[list[int | str]]
    room: int

    def drained(self) -> list[int]:
        out: list[int] = []
        while self.rows and self.rows[0][1] != "busy":
            number, state = self.rows.pop(0)
            if state == "whole":
                out.append(int(number))
        return out


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["submit", "reserve", "discard"]), st.integers(1, 90)),
        st.tuples(st.sampled_from(["commit", "drop"]), st.integers(0, 200)),
        st.tuples(st.just("drain"), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_it_agrees_with_a_list(steps: list[tuple[str, int]]) -> None:
    kernel = FakeRing(1)
    try:
        ring, model = reader(kernel), Model([], (kernel.size - 1) // STRIDE)
        places: dict[int, int] = {}
        n = 0
        for step, count in steps:
            busy = [row for row in model.rows if row[1] == "busy"]
            if step == "drain":
                assert numbers(ring.drain()) == model.drained()
            elif step in ("commit", "drop"):
                if busy:
                    row = busy[count % len(busy)]
                    row[1] = "whole" if step == "commit" else "dropped"
                    kernel.commit(places[int(row[0])], flags=0 if step == "commit" else DISCARD)
            else:
                state = {"submit": "whole", "reserve": "busy", "discard": "dropped"}[step]
                for _ in range(min(count, model.room - len(model.rows))):
                    places[n] = kernel.reserve(n)
                    if state != "busy":
                        kernel.commit(places[n], flags=0 if state == "whole" else DISCARD)
                    model.rows.append([n, state])
                    n += 1
            assert ring.used == len(model.rows) * STRIDE
        assert numbers(ring.drain()) == model.drained()
    finally:
        kernel.close()
