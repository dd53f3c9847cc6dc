"""Golden counts of bpf_prog_pack on streams small enough to count by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collect.schema import Pte
from replay.placement import GONE, SYMBOLIC, Host, Placement
from replay.policies import POLICIES, Outcome
from replay.policies.prog_pack import ProgPack
from replay.prog_packs import CHUNK_BYTES, HEADER_BYTES
from replay.spread import spread
from tests.unit.test_replay_requests import BPF, MODULE, requests_of

ONE_NODE = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))
PACK_BYTES = 2 << 20
PACK = ProgPack()
MADE = np.uint64(int(Pte.RW))
NEW = SYMBOLIC // 512
"""The first block."""

Rows = list[tuple[str, int, int, int | None]]


def place(rows: Rows, n_bytes: list[int], *, host: Host = ONE_NODE, has_packs: bool = False) -> Outcome:
    return POLICIES["prog-pack"].place(requests_of(rows, n_bytes=n_bytes, has_packs=has_packs), host)


def likeliest(outcome: Outcome) -> Placement:
    assert outcome.expected is not None
    return outcome.placements[outcome.expected]


def new_packs(rows: Rows, n_bytes: list[int], host: Host = ONE_NODE) -> Placement:
    """No room in a pack from before; packs lie where single pages were handed out next."""
    return likeliest(ProgPack({"old-pack": "no"}).place(requests_of(rows, n_bytes=n_bytes), host))


def made_ns(placed: Placement) -> list[int]:
    return sorted(set(placed.acts.ts_ns[placed.acts.mask_clr == MADE].tolist()))


def test_one_image_more_than_fits_makes_a_second_pack() -> None:
    n_bytes = 5 * CHUNK_BYTES + 1 - HEADER_BYTES
    n = PACK_BYTES // CHUNK_BYTES // 6  # 5461 images of 6 chunks
    placed = new_packs([(BPF, 1, t, None) for t in range(n + 1)], [n_bytes] * (n + 1))
    assert placed.served == n + 1
    assert (placed.dest == GONE).all()
    assert made_ns(placed) == [0, n]
    assert placed.acts.n_pages.sum() == 2 * 512
    assert placed.apart


def test_first_fit_fills_the_hole_of_a_freed_image() -> None:
    rows: Rows = [(BPF, 1, 0, None), (BPF, 1, 1, 5), (BPF, 1, 2, None), (BPF, 1, 6, None)]
    placed = new_packs(rows, [1000] * 4)
    assert made_ns(placed) == [0]
    used = -(-(1000 + HEADER_BYTES) // CHUNK_BYTES) * CHUNK_BYTES
    assert placed.idle_pages.tolist() == [512 - -(-n * used // 4096) for n in (1, 2, 3, 2, 3)]


def test_an_emptied_pack_is_freed_and_reset_page_by_page() -> None:
    placed = new_packs([(BPF, 1, 0, 4), (BPF, 1, 8, None)], [100, 100])
    acts = placed.acts
    assert acts.ts_ns.tolist() == [0] * 512 + [4] * 1024 + [8] * 512
    assert (acts.n_pages == 1).all()
    assert [int(acts.n_calls[acts.ts_ns == t].sum()) for t in (0, 4, 8)] == [2, 1024, 2]
    assert set(acts.mask_clr[512:1024].tolist()) == {3}
    assert set(acts.mask_set[1024:1536].tolist()) == {3}
    assert acts.place[:512].tolist() == acts.place[512:1024].tolist() == acts.place[1024:1536].tolist()
    assert placed.idle_pages.tolist() == [511, 0, 511]


def test_larger_than_a_pack_keeps_its_own_pages() -> None:
    placed = new_packs([(BPF, 513, 0, None), (BPF, 1, 1, None)], [PACK_BYTES, 64])
    assert placed.swallowed.tolist() == [False, True]
    assert (placed.served, placed.as_recorded) == (1, 1)
    assert placed.dest[:513].tolist() == list(range(513))


def test_modules_are_none_of_its_business() -> None:
    placed = new_packs([(MODULE, 4, 0, 9), (BPF, 1, 1, None)], [0, 64])
    assert placed.dest[:4].tolist() == [0, 1, 2, 3]
    assert placed.as_recorded == 1


def test_a_kernel_that_has_packs_stays_as_recorded() -> None:
    outcome = place([(BPF, 1, 0, None)], [64], has_packs=True)
    assert outcome.identity
    assert len(outcome.placements) == 1
    assert outcome.placements[0].dest.tolist() == [0]
    assert "already has" in outcome.caveats[0]


def test_two_nodes_make_packs_of_twice_the_pages() -> None:
    placed = new_packs([(BPF, 1, 0, None)], [64], replace(ONE_NODE, n_nodes=2))
    assert placed.acts.n_pages.sum() == 1024
    assert placed.acts.n_calls.sum() == 2  # one pack: its calls are counted once
    assert placed.idle_pages.tolist() == [1023]


def test_spread_is_that_of_the_recorded_pages() -> None:
    assert spread(np.arange(512), 512) == 1
    assert spread(np.arange(512) * 512, 512) == 512
    assert spread(np.arange(64) * 64, 512) == 64  # 8 pages a frame, as published for a fresh machine
    assert spread(np.zeros(0, np.int64), 512) == 512


def frames_of(placed: Placement, ns: int) -> list[int]:
    return sorted(set((placed.acts.place[placed.acts.ts_ns == ns] // 512).tolist()))


def test_a_pack_lies_where_single_pages_were_handed_out_next() -> None:
    """16 images of 4 pages, 8 pages a frame: the next 24 special pages stand for 512 taken at once."""
    rows: Rows = [(BPF, 4, t, None) for t in range(16)]
    requests = requests_of(rows, n_bytes=[64] * 15 + [PACK_BYTES - HEADER_BYTES])
    pfn = np.arange(64) // 8 * 512 + np.arange(64) % 8
    requests = replace(requests, pfn=pfn)
    dense, next_ones, scattered = ProgPack({"old-pack": "no"}).place(requests, ONE_NODE).placements
    assert made_ns(next_ones) == [0, 15]
    assert [frames_of(next_ones, ns) for ns in (0, 15)] == [
        [0, NEW, NEW + 1],
        [5, NEW + 2, NEW + 3],
    ]  # too few: those before
    assert [frames_of(dense, ns) for ns in (0, 15)] == [[0, NEW, NEW + 1], [5, NEW + 2, NEW + 3]]
    assert [frames_of(scattered, ns) for ns in (0, 15)] == [[1, NEW, NEW + 1, NEW + 2], [3, NEW + 2, NEW + 3, NEW + 4]]


def test_an_old_pack_has_what_the_recorders_programs_leave() -> None:
    """Expected and at one end, a pack from before has 1200 bytes a program of the recorder in it; at the other it is full."""
    room = PACK_BYTES - 30 * 1024  # 25 programs
    host = replace(ONE_NODE, recorder_programs=25)
    rows: Rows = [(BPF, 1, 0, None), (BPF, 1, 1, None)]
    for size, n_made in ((room - 64, 0), (room - 63, 1)):  # with an image of one chunk behind it
        outcome = place(rows, [size - HEADER_BYTES, 64 - HEADER_BYTES], host=host)
        assert len(made_ns(likeliest(outcome))) == n_made
        assert sorted({len(made_ns(p)) for p in outcome.placements}) == sorted({n_made, 1})
    known = ProgPack({"old-pack": "yes", "old-pack-used": "2048"}).place(requests_of(rows, n_bytes=[64, 64]), host)
    assert [made_ns(p) for p in known.placements] == [[0]] * 3


@pytest.mark.parametrize("old", ["maybe", "yes"])
def test_an_old_pack_that_is_full_is_followed_by_new_ones(old: str) -> None:
    rows: Rows = [(BPF, 512, 0, None), (BPF, 1, 1, 3), (BPF, 1, 4, None)]
    requests = requests_of(rows, n_bytes=[PACK_BYTES - HEADER_BYTES, 64, 64])
    placed = likeliest(ProgPack({"old-pack": old}).place(requests, ONE_NODE))
    assert made_ns(placed) == [1, 4]
    assert set(placed.acts.ts_ns.tolist()) == {1, 3, 4}
    assert (placed.dest == GONE).all()


def test_where_no_page_is_known_a_pack_is_one_block_or_a_frame_a_page() -> None:
    requests = requests_of([(BPF, 1, 0, None)], n_bytes=[64])
    unknown = replace(requests, pfn=np.full(1, -1))
    dense, _, scattered = ProgPack({"old-pack": "no"}).place(unknown, ONE_NODE).placements
    assert (dense.n_blocks, scattered.n_blocks) == (1, 512)
    assert dense.acts.n_pages.sum() == scattered.acts.n_pages.sum() == 512
