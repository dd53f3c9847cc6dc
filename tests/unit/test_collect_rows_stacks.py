"""Rows wait for what they name: a change or a region for its stack; stacks and names are stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collect.interning import trim
from collect.records import CHUNK
from collect.rows import RowMaker
from collect.schema import Cpa, Level, RegionEvent, Tier
from tests.machine.row_records import (
    MODULES,
    PAGE_OFFSET,
    SYMBOLS,
    VMEMMAP,
    change,
    one_tick,
    ptes,
    region,
    tick,
)


def stack(key: int, *ips: int, n_bytes: int | None = None) -> dict[str, Any]:
    ip = list(ips) + [0] * (32 - len(ips))
    return {"key": key, "n_bytes": 8 * len(ips) if n_bytes is None else n_bytes, "ip": ip}


CPA, RO, OURS = 0xFFFF_FFFF_8100_0120, 0xFFFF_FFFF_8100_0210, 0xFFFF_FFFF_C000_3010
TRAMPOLINE, MODULE = 0xFFFF_FFFF_C000_4020, 0xFFFF_FFFF_C000_1050


def test_equal_stacks_are_stored_once(maker: RowMaker) -> None:
    first = tick(
        maker,
        stack=[stack(11, CPA, RO), stack(12, CPA), stack(13, CPA, RO)],
        change=[change(PAGE_OFFSET, stack_key=key, call_id=key) for key in (11, 12, 13)],
    )
    ids = [row["stack_id"] for row in first["changes"]]
    assert ids[0] == ids[2] != ids[1] and 0 not in ids
    assert {row["stack_id"]: row["frames"] for row in first["stacks"]} == {
        ids[0]: ["__change_page_attr_set_clr+0x20", "set_memory_ro+0x10"],
        ids[1]: ["__change_page_attr_set_clr+0x20"],
    }
    second = tick(maker, stack=[stack(21, CPA)], region=[region(MODULES, 1, stack_key=21, tier=Tier.ASKED)])
    assert second["regions"][0]["stack_id"] == ids[1]
    assert second["stacks"] == []


def test_a_stack_waits_for_its_event(maker: RowMaker) -> None:
    tick(maker, stack=[stack(11, CPA)])
    [row] = tick(maker, change=[change(PAGE_OFFSET, stack_key=11)])["changes"]
    assert row["stack_id"] == 1


def test_a_change_waits_a_tick_for_its_stack(maker: RowMaker) -> None:
    """The stack was whole first, but lay in its ring behind one that another CPU was still writing."""
    late, other = change(PAGE_OFFSET, stack_key=11), change(PAGE_OFFSET + 4096, call_id=8)
    assert [row["call_id"] for row in one_tick(maker, change=[late, other])["changes"]] == [8]
    assert maker.held == 1
    [row] = one_tick(maker, stack=[stack(11, CPA)])["changes"]
    assert (row["call_id"], row["stack_id"], maker.held) == (7, 1, 0)


def test_a_change_that_waits_for_pages_of_its_array_loses_none(maker: RowMaker) -> None:
    n = CHUNK + 3
    whole = change(PAGE_OFFSET, flags=Cpa.PAGES_ARRAY, n_pages=n, n_done=n)
    pages = [VMEMMAP + (0x400 + i) * 64 for i in range(2 * CHUNK)]
    chunks = [{"call_id": 7, "chunk": i, "page": pages[i * CHUNK : (i + 1) * CHUNK]} for i in (0, 1)]
    assert one_tick(maker, change=[whole], array=chunks[:1])["changes"] == []
    [row] = one_tick(maker, array=chunks[1:])["changes"]
    assert (row["pfns"], row["n_pfns_lost"]) == ([0x400 + i for i in range(n)], 0)


def test_a_region_that_waits_keeps_its_frames_though_it_is_freed_meanwhile(maker: RowMaker) -> None:
    made = region(MODULES, 4096, stack_key=11)
    frames = {"region_id": 9, "address": MODULES, "level": Level.K4, "pte": ptes(0x77, 1)}
    gone = region(MODULES, 0, event=RegionEvent.FREE, ts=60)
    first = one_tick(maker, region=[made, gone], frames=[frames])["regions"]
    assert [row["event"] for row in first] == [RegionEvent.FREE]
    [row] = one_tick(maker, stack=[stack(11, CPA)])["regions"]
    assert (row["pfns"], row["n_pfns_lost"], row["stack_id"]) == ([0x77], 0, 1)


def test_a_stack_that_was_lost_is_none(maker: RowMaker) -> None:
    rows = tick(maker, stack=[stack(11, CPA)], change=[change(PAGE_OFFSET, stack_key=k) for k in (0, 5, 12)])
    assert [row["stack_id"] for row in rows["changes"]] == [0, 0, 0]


def test_what_lies_behind_the_end_of_a_stack_is_not_in_it(maker: RowMaker) -> None:
    rows = tick(maker, stack=[stack(11, CPA, RO, MODULE, n_bytes=16), stack(12, CPA, RO)])
    assert [row["frames"] for row in rows["stacks"]] == [["__change_page_attr_set_clr+0x20", "set_memory_ro+0x10"]]


def test_our_own_probes_are_not_in_a_stack(maker: RowMaker) -> None:
    rows = tick(maker, stack=[stack(11, OURS, TRAMPOLINE, CPA, RO, MODULE)])
    assert rows["stacks"][0]["frames"] == [
        "__change_page_attr_set_clr+0x20",
        "set_memory_ro+0x10",
        "init_module+0x50 [mod]",
    ]


def test_trim_takes_off_the_programs_on_top_and_leaves_those_below() -> None:
    ours, theirs = "bpf_prog_1_ours+0x1 [bpf]", "bpf_prog_2_theirs+0x1 [bpf]"
    assert trim([ours, ours, "a+0x1", theirs, "b+0x1"]) == ["a+0x1", theirs, "b+0x1"]
    assert trim(["?", "bpf_trampoline_7+0x5 [bpf]", "__bpf_prog_exit+0x1", "a+0x1"]) == ["a+0x1"]
    assert trim([ours]) == [ours]
    assert trim([]) == []


def test_a_module_that_came_since_is_looked_up(maker: RowMaker, symbols: Path) -> None:
    late = 0xFFFF_FFFF_C100_0010
    symbols.write_text(SYMBOLS + "ffffffffc1000000 t late_init\t[late]\n")
    rows = tick(maker, stack=[stack(11, CPA, late)])
    assert rows["stacks"][0]["frames"] == ["__change_page_attr_set_clr+0x20", "late_init+0x10 [late]"]


def test_each_name_is_stored_once_and_nothing_is_0(maker: RowMaker) -> None:
    first = tick(
        maker,
        change=[change(PAGE_OFFSET, comm=name) for name in (b"insmod", b"", b"perf", b"insmod")],
        region=[region(MODULES, 1, comm=b"perf", name=b"ext4", tier=Tier.ASKED)],
    )
    texts = {row["string_id"]: row["text"] for row in first["strings"]}
    assert texts[0] == ""
    assert sorted(texts.values()) == ["", "ext4", "insmod", "perf"]
    assert [texts[row["comm_id"]] for row in first["changes"]] == ["insmod", "", "perf", "insmod"]
    assert [texts[first["regions"][0][name]] for name in ("comm_id", "name_id")] == ["perf", "ext4"]
    second = tick(maker, change=[change(PAGE_OFFSET, comm=name) for name in (b"perf", b"\xff\xfe")])
    assert [row["text"] for row in second["strings"]] == ["\ufffd\ufffd"]
    assert second["changes"][0]["comm_id"] == first["changes"][2]["comm_id"]
