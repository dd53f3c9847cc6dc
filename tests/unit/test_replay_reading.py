"""What is read from a trace's regions, stacks and counters: requests, their users, and the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.errors import TraceError
from collect.schema import NO_PFN, RegionEvent, RegionKind, Tier
from collect.trace import Trace, open_trace
from replay.host import read_host, whole_ram
from replay.requests import NEVER, Life, Requests, read_requests
from tests.machine.recorder import Recorder

MAX_PFN = 1 << 18


class Regions(Recorder):
    """Rows of the table regions, one method an event."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.attached = ["fentry+fexit:module_alloc"]
        self.config: dict[str, str] = {}

    def row(self, event: RegionEvent, kind: RegionKind, region: int, **columns: Any) -> int:
        self.now += 10
        tier = Tier.ASKED if kind < 16 else Tier.BACKING
        self.rows["regions"].append(
            {
                "ts_ns": self.now, "event": int(event), "tier": int(tier), "kind": int(kind), "region_id": region,
                "parent_id": 0, "cpu": 0, "pid": 5, "tgid": 5, "comm_id": 0, "name_id": 0, "address": 0, "n_bytes": 0,
                "map_level": 1, "n_pfns_lost": 0, **columns,
                "pfns": columns.get("pfns", []), "stack_id": self.stack(columns.get("stack_id", ("cpu_idle",))),
            }
        )  # fmt: skip
        return region

    def alloc(self, kind: RegionKind, *, stack: tuple[str, ...] = ("cpu_idle",), **columns: Any) -> int:
        return self.row(RegionEvent.ALLOC, kind, self.new_id(), stack_id=stack, **columns)

    def free(self, kind: RegionKind, region: int) -> int:
        return self.row(RegionEvent.FREE, kind, region)

    def trace(self, directory: Path) -> Trace:
        manifest = {
            "ts_start_ns": 0,
            "ts_end_ns": self.now,
            "kernel": {"release": "by hand", "version": "", "boot_id": "", "cmdline": "", "config": self.config},
            "memory": {"max_pfn": MAX_PFN, "ranges": [], "page_offset": 0, "paging_levels": 4},
            "recorder": {"pid": 1, "tgid": 1},
            "probes": {"attached": self.attached, "missing": []},
        }
        return open_trace(self.write(directory / "t", manifest))


@pytest.fixture
def regions() -> Regions:
    return Regions()


def test_an_image_of_5_10_is_a_request_by_what_backs_it(regions: Regions, tmp_path: Path) -> None:
    image = 77
    regions.alloc(RegionKind.MODULE_ALLOC, pfns=[5, 9], address=0xFFFF_C000_0000_0000, n_bytes=8192, parent_id=image)
    regions.row(RegionEvent.ALLOC, RegionKind.BPF_IMAGE, image, n_bytes=0xE12B_3EFA_0000_1388)  # 5000, as an u32
    regions.free(RegionKind.BPF_IMAGE, image)
    regions.free(RegionKind.MODULE_ALLOC, 1)
    requests = read_requests(regions.trace(tmp_path))
    assert len(requests) == 1
    assert requests.pfn.tolist() == [5, 9]
    assert requests.asked_kind.tolist() == [RegionKind.BPF_IMAGE]
    assert requests.asked_bytes.tolist() == [5000]
    assert requests.in_jit.tolist() == [True]
    assert requests.by_user() == {"bpf": 1}
    assert (requests.alloc_ns.tolist(), requests.free_ns.tolist()) == ([1010], [1040])
    assert not requests.has_packs


def test_a_trampoline_is_no_image(regions: Regions, tmp_path: Path) -> None:
    stack = ("bpf_jit_alloc_exec_page", "bpf_trampoline_link_prog")
    page = regions.alloc(RegionKind.BPF_IMAGE, n_bytes=4096, stack=stack)
    regions.alloc(RegionKind.MODULE_ALLOC, pfns=[5], parent_id=page)
    requests = read_requests(regions.trace(tmp_path))
    assert requests.in_jit.tolist() == [False]
    assert requests.by_user() == {"bpf": 1}


@pytest.mark.parametrize(
    ("stack", "user"),
    [
        (("module_alloc", "load_module", "__do_sys_finit_module"), "module"),
        (("alloc_insn_page", "__get_insn_slot", "load_module"), "kprobe"),
        (("arch_ftrace_update_trampoline", "ftrace_startup"), "ftrace"),
        (("bpf_jit_alloc_exec", "bpf_prog_select_runtime", "load_module"), "bpf"),
        (("vmalloc",), "other"),
    ],
)
def test_users_by_stack(regions: Regions, tmp_path: Path, stack: tuple[str, ...], user: str) -> None:
    regions.alloc(RegionKind.MODULE_ALLOC, pfns=[5], stack=stack)
    assert read_requests(regions.trace(tmp_path)).by_user() == {user: 1}


def test_what_lies_inside_a_living_block_is_no_request_of_its_own(regions: Regions, tmp_path: Path) -> None:
    block = regions.alloc(RegionKind.ROX_BLOCK, pfns=list(range(512)), map_level=2, n_bytes=2 << 20)
    regions.alloc(RegionKind.EXECMEM, pfns=[7, 8])
    regions.free(RegionKind.ROX_BLOCK, block)
    regions.alloc(RegionKind.EXECMEM, pfns=[8, 7])
    requests = read_requests(regions.trace(tmp_path))
    assert requests.kind.tolist() == [RegionKind.ROX_BLOCK, RegionKind.EXECMEM]
    assert requests.order.tolist() == [9, 0]
    assert requests.n_nested == 1
    assert requests.pfn.tolist() == [*range(512), 8, 7]


def test_an_area_of_a_block_from_before_the_recording_is_no_request(regions: Regions, tmp_path: Path) -> None:
    regions.config = {"CONFIG_ARCH_HAS_EXECMEM_ROX": "y"}
    base = 0xFFFF_FFFF_C020_0000
    regions.alloc(RegionKind.EXECMEM, pfns=[512 + 3, 512 + 4], address=base + 3 * 4096)
    regions.alloc(RegionKind.EXECMEM, pfns=[512 + 9, 512 + 11], address=base + 9 * 4096)
    regions.alloc(RegionKind.EXECMEM, pfns=[512 + 21], address=base + 20 * 4096)
    requests = read_requests(regions.trace(tmp_path))
    assert requests.n_in_old_blocks == 1
    assert requests.pfn.tolist() == [521, 523, 533]


def asked(trace: Trace) -> dict[str, list[Any]]:
    """The view as asked, in words."""
    requests = read_requests(trace, as_asked=True)
    assert requests.n_nested == requests.n_in_old_blocks == 0
    owner = requests.owner
    return {
        "life": [Life(life).name for life in requests.life],
        "pfn": [requests.pfn[owner == i].tolist() for i in range(len(requests))],
        "order": requests.order.tolist(),
    }


def test_as_asked_an_image_out_of_a_pack_is_a_request_and_the_pack_is_none(regions: Regions, tmp_path: Path) -> None:
    pack = 77
    regions.alloc(RegionKind.MODULE_ALLOC, pfns=[1, 2], parent_id=pack)
    regions.row(RegionEvent.ALLOC, RegionKind.BPF_PACK, pack)
    image = regions.alloc(RegionKind.BPF_IMAGE, n_bytes=4096 - 127, address=0xFFFF_C000_0000_0000)
    regions.alloc(RegionKind.BPF_IMAGE, n_bytes=100)
    regions.free(RegionKind.BPF_IMAGE, image)
    trace = regions.trace(tmp_path)
    assert asked(trace) == {
        "life": ["CACHE", "IMAGE", "IMAGE"],
        "pfn": [[1, 2], [-1, -1], [-1]],  # as bpf_jit_binary_alloc rounds up: 128 bytes more, whole pages
        "order": [0, 0, 0],
    }
    requests = read_requests(trace, as_asked=True)
    assert requests.by_user() == {"bpf": 2}
    assert requests.free_ns.tolist() == [NEVER, 1050, NEVER]
    assert requests.n_pages_unknown == 0
    assert len(read_requests(trace)) == 1  # as backed: the pack


def test_as_asked_areas_of_rox_blocks_are_requests_old_blocks_too(regions: Regions, tmp_path: Path) -> None:
    regions.config = {"CONFIG_ARCH_HAS_EXECMEM_ROX": "y"}
    base = 0xFFFF_FFFF_C020_0000
    regions.alloc(RegionKind.ROX_BLOCK, pfns=list(range(512)), map_level=2, n_bytes=2 << 20)
    regions.alloc(RegionKind.EXECMEM, pfns=[7, 8], map_level=2)
    regions.alloc(RegionKind.EXECMEM, pfns=[1024 + 3], address=base + 3 * 4096, map_level=2)
    regions.alloc(RegionKind.SECRET_PAGE, pfns=[700])
    view = asked(regions.trace(tmp_path))
    assert view["life"] == ["CACHE", "AREA", "AREA", "RECORDED"]
    assert view["pfn"][1:] == [[7, 8], [1027], [700]]
    assert view["order"] == [9, 0, 0, 0]


def test_without_caches_both_views_are_the_same(regions: Regions, tmp_path: Path) -> None:
    image = 77
    regions.alloc(RegionKind.MODULE_ALLOC, pfns=[5, 9], parent_id=image)
    regions.row(RegionEvent.ALLOC, RegionKind.BPF_IMAGE, image, n_bytes=5000)
    regions.alloc(RegionKind.SECRET_PAGE, pfns=[3])
    trace = regions.trace(tmp_path)
    one, other = read_requests(trace), read_requests(trace, as_asked=True)
    for name in Requests.__dataclass_fields__:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_images_of_more_pages_than_any_machine_are_refused(regions: Regions, tmp_path: Path) -> None:
    for _ in range(5):
        regions.alloc(RegionKind.BPF_IMAGE, n_bytes=0xFFFF_FFFF)
    with pytest.raises(TraceError, match="more than any recording of ours"):
        read_requests(regions.trace(tmp_path), as_asked=True)


def test_packs_are_told_by_a_pack_or_by_the_probe(regions: Regions, tmp_path: Path) -> None:
    pack = regions.alloc(RegionKind.BPF_PACK, n_bytes=2 << 20, pfns=[1, 2, 3])
    regions.free(RegionKind.BPF_PACK, pack)
    requests = read_requests(regions.trace(tmp_path))
    assert requests.has_packs
    assert requests.by_user() == {"bpf": 1}
    other = Regions()
    other.attached.append("fentry+fexit:bpf_prog_pack_alloc")
    other.alloc(RegionKind.MODULE_ALLOC, pfns=[1])
    assert read_requests(other.trace(tmp_path / "other")).has_packs


def test_frees_of_older_memory_and_unknown_frames_are_counted(regions: Regions, tmp_path: Path) -> None:
    regions.free(RegionKind.MODULE_ALLOC, 0)
    regions.alloc(RegionKind.SECRET_PAGE, pfns=[NO_PFN])
    requests = read_requests(regions.trace(tmp_path))
    assert requests.n_frees_before == 1
    assert requests.n_pages_unknown == 1
    assert requests.pfn.tolist() == [-1]
    assert requests.free_ns.tolist() == [NEVER]


def test_a_frame_beyond_memory_is_refused(regions: Regions, tmp_path: Path) -> None:
    regions.alloc(RegionKind.SECRET_PAGE, pfns=[MAX_PFN])
    with pytest.raises(TraceError, match=r"beyond memory\.max_pfn"):
        read_requests(regions.trace(tmp_path))


def test_no_region_no_request(regions: Regions, tmp_path: Path) -> None:
    assert len(read_requests(regions.trace(tmp_path))) == 0


def test_free_blocks_by_order_without_zone_dma(regions: Regions, tmp_path: Path) -> None:
    for ts, blocks in ((5, 3), (9, 4)):
        for zone in ("DMA", "DMA32", "Normal"):
            regions.counter(ts, f"buddyinfo/0/{zone}/9", blocks)
            regions.counter(ts, f"buddyinfo/0/{zone}/10", 1)
    regions.counter(9, "buddyinfo/1/Normal/0", 7)
    regions.counter(9, "buddyinfo/nonsense", 7)
    regions.counter(9, "vmstat/direct_map_level2_splits", 7)
    regions.row(RegionEvent.FREE, RegionKind.MODULE_ALLOC, 0)
    host = read_host(regions.trace(tmp_path))
    assert host.n_nodes == 2
    assert host.free_ns.tolist() == [5, 9]
    assert host.free_blocks[:, 9:].tolist() == [[6, 2], [8, 2]]
    assert host.free_blocks[1, 0] == 7


def test_frames_that_are_ram_throughout() -> None:
    assert whole_ram([(1, 1024), (1536, 2560), (2600, 2700)], 6).tolist() == [False, True, False, True, True, False]
    assert np.count_nonzero(whole_ram([], 6)) == 0
