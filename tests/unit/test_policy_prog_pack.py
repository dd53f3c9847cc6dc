"""Golden counts of bpf_prog_pack on streams small enough to count by hand."""

from __future__ import annotations

import numpy as np

from collect.schema import Pte
from replay.placement import GONE, Host, Placement
from replay.policies import POLICIES, Outcome
from replay.policies.prog_pack import ProgPack
from replay.prog_packs import CHUNK_BYTES, HEADER_BYTES
from replay.spread import spread
from tests.unit.test_replay_requests import BPF, MODULE, requests_of

ONE_NODE = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))
PACK_BYTES = 2 << 20
PACK = ProgPack()


def place(
    rows: list[tuple[str, int, int, int | None]], n_bytes: list[int], *, host: Host = ONE_NODE, has_packs: bool = False
) -> Outcome:
    return POLICIES["prog-pack"].place(requests_of(rows, n_bytes=n_bytes, has_packs=has_packs), host)


def compact(rows: list[tuple[str, int, int, int | None]], n_bytes: list[int], host: Host = ONE_NODE) -> Placement:
    """New packs only, each in as few blocks as can be."""
    return PACK.placed(requests_of(rows, n_bytes=n_bytes), host)


def test_one_image_more_than_fits_makes_a_second_pack() -> None:
    n_bytes = 5 * CHUNK_BYTES + 1 - HEADER_BYTES
    n = PACK_BYTES // CHUNK_BYTES // 6  # 5461 images of 6 chunks
    placed = compact([(BPF, 1, t, None) for t in range(n + 1)], [n_bytes] * (n + 1))
    assert placed.n_blocks == 2
    assert placed.served == n + 1
    assert (placed.dest == GONE).all()
    made = placed.acts.mask_clr == np.uint64(int(Pte.RW))
    assert placed.acts.ts_ns[made].tolist() == [0, n]
    assert placed.acts.n_pages.tolist() == [512, 512]


def test_first_fit_fills_the_hole_of_a_freed_image() -> None:
    rows = [(BPF, 1, 0, None), (BPF, 1, 1, 5), (BPF, 1, 2, None), (BPF, 1, 6, None)]
    placed = compact(rows, [1000] * 4)
    assert placed.n_blocks == 1
    used = -(-(1000 + HEADER_BYTES) // CHUNK_BYTES) * CHUNK_BYTES
    assert placed.idle_pages.tolist() == [512 - -(-n * used // 4096) for n in (1, 2, 3, 2, 3)]


def test_an_emptied_pack_is_freed_and_reset_page_by_page() -> None:
    placed = compact([(BPF, 1, 0, 4), (BPF, 1, 8, None)], [100, 100])
    assert placed.n_blocks == 2
    assert placed.acts.ts_ns.tolist() == [0, 4, 4, 8]
    assert placed.acts.n_calls.tolist() == [2, 512, 512, 2]
    assert placed.acts.mask_clr.tolist() == [2, 3, 0, 2]
    assert placed.acts.mask_set.tolist() == [0, 0, 3, 0]
    assert placed.idle_pages.tolist() == [511, 0, 511]


def test_larger_than_a_pack_keeps_its_own_pages() -> None:
    placed = compact([(BPF, 513, 0, None), (BPF, 1, 1, None)], [PACK_BYTES, 64])
    assert placed.swallowed.tolist() == [False, True]
    assert (placed.served, placed.as_recorded) == (1, 1)
    assert placed.dest[:513].tolist() == list(range(513))


def test_modules_are_none_of_its_business() -> None:
    placed = compact([(MODULE, 4, 0, 9), (BPF, 1, 1, None)], [0, 64])
    assert placed.dest[:4].tolist() == [0, 1, 2, 3]
    assert placed.as_recorded == 1


def test_a_kernel_that_has_packs_stays_as_recorded() -> None:
    outcome = place([(BPF, 1, 0, None)], [64], has_packs=True)
    assert outcome.identity
    assert len(outcome.placements) == 1
    assert outcome.placements[0].dest.tolist() == [0]
    assert "already has" in outcome.caveats[0]


def test_two_nodes_make_packs_of_two_blocks() -> None:
    host = Host(2, ONE_NODE.free_ns, ONE_NODE.free_blocks)
    placed = compact([(BPF, 1, 0, None)], [64], host)
    assert placed.n_blocks == 2
    assert placed.acts.n_pages.tolist() == [512, 512]
    assert placed.acts.n_calls.tolist() == [2, 0]  # one pack: its calls are counted once


def test_spread_is_that_of_the_recorded_pages() -> None:
    assert spread(np.arange(512), 512) == 1
    assert spread(np.arange(512) * 512, 512) == 512
    assert spread(np.arange(64) * 64, 512) == 64  # 8 pages a frame, as published for a fresh machine
    assert spread(np.zeros(0, np.int64), 512) == 512


def test_bounds_are_room_in_an_old_pack_and_new_frames_for_every_new_one() -> None:
    rows = [(BPF, 1, t, t + 1) for t in range(0, 128, 2)]
    requests = requests_of(rows, n_bytes=[64] * 64)
    object.__setattr__(requests, "pfn", np.arange(64) * 64)
    roomy, wide = PACK.place(requests, ONE_NODE).placements
    assert roomy.n_blocks == 0
    assert len(roomy.acts.ts_ns) == 0
    assert roomy.idle_pages[:2].tolist() == [511, 512]
    assert wide.n_blocks == 64 * 64  # each image makes a pack of its own, 8 pages in each of 64 frames, and empties it
    assert set(wide.acts.n_pages.tolist()) == {8}


def test_an_old_pack_that_is_full_is_followed_by_new_ones() -> None:
    rows = [(BPF, 512, 0, None), (BPF, 1, 1, 3), (BPF, 1, 4, None)]
    placed = PACK.placed(requests_of(rows, n_bytes=[PACK_BYTES - HEADER_BYTES, 64, 64]), ONE_NODE, old_pack=True)
    assert placed.n_blocks == 2
    assert placed.acts.ts_ns.tolist() == [1, 3, 3, 4]
    assert (placed.dest == GONE).all()
