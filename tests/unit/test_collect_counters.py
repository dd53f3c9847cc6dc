"""The kernel's own totals, from the texts of kernels old and new."""

from __future__ import annotations

from pathlib import Path

import pytest

from collect.counters import counter_rows, read_counters
from collect.schema import TABLES

MEMINFO = """\
MemTotal:        6043892 kB
MemFree:         5702480 kB
Cached:           120364 kB
SwapCached:            0 kB
HugePages_Total:       0
DirectMap4k:       92016 kB
DirectMap2M:     4102144 kB
DirectMap1G:     4194304 kB
"""
BUDDYINFO = """\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      2
Node 0, zone    DMA32      7      5      4      4      5      4      5      5      5      4    740
Node 1, zone   Normal    231     34     12      7      0      1      0      1      1      1    610
"""
VMSTAT_OLD = "nr_free_pages 1425620\npgfault 118467\nswap_ra 0\n"
VMSTAT_NEW = """\
nr_free_pages 1425620
direct_map_level2_splits 14
direct_map_level3_splits 2
direct_map_level2_collapses 5
direct_map_level3_collapses 1
nr_unstable 0
"""


def proc(tmp_path: Path, vmstat: str) -> Path:
    for name, text in (("meminfo", MEMINFO), ("buddyinfo", BUDDYINFO), ("vmstat", vmstat)):
        (tmp_path / name).write_text(text)
    return tmp_path


COMMON = {
    "meminfo/MemFree": 5702480,
    "meminfo/Cached": 120364,
    "meminfo/DirectMap4k": 92016,
    "meminfo/DirectMap2M": 4102144,
    "meminfo/DirectMap1G": 4194304,
}


def without_buddies(counters: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in counters.items() if not name.startswith("buddyinfo/")}


def test_a_kernel_without_counters_of_splits_has_none(tmp_path: Path) -> None:
    """5.10: they came with 5.13."""
    assert without_buddies(read_counters(proc(tmp_path, VMSTAT_OLD))) == COMMON


def test_splits_and_collapses_are_told_by_level(tmp_path: Path) -> None:
    """6.15 and later."""
    assert without_buddies(read_counters(proc(tmp_path, VMSTAT_NEW))) == COMMON | {
        "vmstat/direct_map_level2_splits": 14,
        "vmstat/direct_map_level3_splits": 2,
        "vmstat/direct_map_level2_collapses": 5,
        "vmstat/direct_map_level3_collapses": 1,
    }


def test_free_blocks_are_told_by_node_zone_and_order(tmp_path: Path) -> None:
    counters = read_counters(proc(tmp_path, VMSTAT_OLD))
    blocks = {name: value for name, value in counters.items() if name.startswith("buddyinfo/")}
    assert len(blocks) == 3 * 11
    assert blocks["buddyinfo/0/DMA/10"] == 2
    assert blocks["buddyinfo/0/DMA32/0"] == 7
    assert [blocks[f"buddyinfo/1/Normal/{order}"] for order in (0, 1, 10)] == [231, 34, 610]


def test_rows_are_of_one_moment(tmp_path: Path) -> None:
    counters = read_counters(proc(tmp_path, VMSTAT_NEW))
    table = counter_rows(123_456_789_012, counters)
    assert table.schema.equals(TABLES["counters"])
    rows = table.to_pylist()
    assert {row["counter"]: row["value"] for row in rows} == counters
    assert {row["ts_ns"] for row in rows} == {123_456_789_012}
    assert counter_rows(5, {}).num_rows == 0


@pytest.mark.skipif(not Path("/proc/buddyinfo").exists(), reason="no /proc/buddyinfo here")
def test_this_machine_has_free_memory() -> None:
    counters = read_counters()
    assert counters["meminfo/MemFree"] > 0
    assert any(name.startswith("buddyinfo/") and value for name, value in counters.items())
