"""Golden counts of the policies that take whole blocks for secret pages: the 2026 flip, and secretmem's old pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from replay.placement import SYMBOLIC, Host, Placement, Served
from replay.policies.pageblock_flip import PageblockFlip
from replay.policies.secretmem_pool import SecretmemPool
from tests.unit.test_replay_requests import MODULE, SECRET, requests_of

Rows = list[tuple[str, int, int, int | None]]
NO_COUNTS = Host(1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64))


def flip(rows: Rows, host: Host = NO_COUNTS, compaction: str = "always") -> list[Placement]:
    return PageblockFlip({"compaction": compaction}).place(requests_of(rows), host).placements


def pool(rows: Rows, threads: list[int] | None = None) -> list[Placement]:
    requests = requests_of(rows)
    if threads:
        requests = replace(requests, alloc_pid=np.array(threads, np.int64))
    return SecretmemPool().place(requests, NO_COUNTS).placements


def test_a_block_is_unmapped_and_mapped_by_one_call() -> None:
    (p,) = flip([(SECRET, 1, t, None) for t in range(513)])
    assert (p.acts.n_pages.tolist(), p.acts.step_pages.tolist()) == ([512, 512], [512, 512])
    assert (p.acts.n_calls.tolist(), p.acts.n_range_flushes.tolist()) == ([1, 1], [1, 1])
    assert p.acts.ts_ns.tolist() == [0, 512]
    assert p.idle_pages[[0, 511, 512]].tolist() == [511, 0, 511]
    assert p.swallowed.all()
    assert sorted((p.dest - SYMBOLIC).tolist()) == list(range(513))


def test_others_go_on_as_recorded() -> None:
    (p,) = flip([(MODULE, 3, 0, 5), (SECRET, 1, 1, None)])
    assert p.dest[:3].tolist() == [0, 1, 2]
    assert p.swallowed.tolist() == [False, True]
    assert p.state.tolist() == [Served.AS_RECORDED, Served.SERVED]
    assert PageblockFlip().place(requests_of([(MODULE, 3, 0, 5)]), NO_COUNTS).identity
    assert SecretmemPool().place(requests_of([(MODULE, 3, 0, 5)]), NO_COUNTS).identity


def test_only_wholly_free_blocks_are_flipped_back_and_only_under_pressure() -> None:
    host = replace(NO_COUNTS, pressure_ns=np.array([3, 6]), pressure_pages=np.array([1, 1]))
    again, new = flip([(SECRET, 1, 0, 5), (SECRET, 1, 8, None)], host)
    assert (again.n_blocks, new.n_blocks) == (1, 2)
    for p in (again, new):
        assert p.acts.ts_ns.tolist() == [0, 6, 8]
        assert p.acts.mask_clr.tolist() == [3, 0, 3]
        assert p.acts.mask_set.tolist() == [0, 3, 0]
        assert p.pages_released == 512
        assert p.idle_pages.tolist() == [511, 511, 512, 0, 511]


@pytest.mark.parametrize(("compaction", "served"), [("always", [2]), ("never", [1]), ("maybe", [2, 1])])
def test_when_no_whole_block_is_free_compaction_decides(compaction: str, served: list[int]) -> None:
    blocks = np.zeros((1, 11), np.int64)
    blocks[0, 8:10] = 100, 1
    rows: Rows = [(SECRET, 512, 0, None), (SECRET, 1, 1, None)]
    placements = flip(rows, Host(1, np.zeros(1, np.int64), blocks), compaction)
    assert [p.served for p in placements] == served
    assert [p.refill_failures for p in placements] == [2 - n for n in served]


def test_a_pool_that_nobody_uses_gives_its_blocks_back() -> None:
    one, _ = pool([(SECRET, 1, 0, 5), (SECRET, 1, 3, 7), (SECRET, 1, 9, None)])
    assert one.acts.ts_ns.tolist() == [0, 7, 9]
    assert one.n_blocks == 1
    assert one.idle_pages.tolist() == [511, 510, 511, 0, 511]


def test_one_pool_for_all_or_one_a_thread() -> None:
    one, each = pool([(SECRET, 1, 0, None), (SECRET, 1, 1, None)], threads=[7, 8])
    assert (one.n_blocks, each.n_blocks) == (1, 2)
    assert (one.idle_pages[-1], each.idle_pages[-1]) == (510, 1022)
