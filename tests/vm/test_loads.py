"""Loads that need more than processors and memory do in a real guest what they say.

Boots guests as root: python3 -m tests.vm setup (once), then DIRECTMAP_VM=1 .venv/bin/python -m pytest -m vm
"""

from __future__ import annotations

import json
from pathlib import Path

from collect.schema import Cpa, Pte, Space
from collect.trace import open_trace
from tests.vm.real_guests import MARKS, record, run, verify

KB_PER_GB = 2**20

pytestmark = MARKS


def test_memory_is_plugged_in_and_out_and_the_direct_map_follows() -> None:
    told = run("hotplug", "--memory", "4G")
    counts = told["counts"]
    assert counts["megabytes_plugged"] == 1024 + 512
    assert counts["dimms_unplugged"] == 1, counts
    assert counts["blocks_online"] == (1024 + 512) // 128, counts
    change = told["direct_map_change"]
    grown = sum(kb for name, kb in change.items() if name.startswith("DirectMap"))
    assert grown == KB_PER_GB, f"the DIMM that stayed has 1 GB, the kernel maps {grown} kB more: {change}"


def test_every_page_of_a_pages_array_is_recorded(tmp_path: Path) -> None:
    """A write-combining buffer is three arrays of all its pages: uncached, write-combining, and at its end write-back."""
    trace = record("drm", tmp_path / "drm", "--memory", "4G")
    counts = json.loads((trace / "lab.json").read_text())["load"]["statistics"]["counts"]
    changes = open_trace(trace).table("changes").to_pandas()
    arrays = changes[changes["flags"] & int(Cpa.PAGES_ARRAY) != 0]
    assert len(arrays) == 3 * counts["buffers"] == 3 * 36
    assert arrays["n_pages"].max() > 2000
    assert arrays["pfns"].map(len).sum() == arrays["n_done"].sum() == 3 * counts["buffer_pages"]
    assert arrays["n_pfns_lost"].sum() == 0
    found = verify(trace)
    assert found["exact"] is True, found
    assert found["splits"]["found_2m"] >= 20, found["splits"]


def test_poisoned_pages_leave_the_map_through_decoy_addresses(tmp_path: Path) -> None:
    trace = record("decoy", tmp_path / "decoy", "--memory", "4G")
    said = json.loads((trace / "lab.json").read_text())["load"]["statistics"]
    assert said["counts"] == {"pages_poisoned": 24}
    changes = open_trace(trace).table("changes").to_pandas()
    unmapped = changes[(changes["depth"] == 0) & changes["pfn"].isin(said["frames"])]
    assert sorted(unmapped["pfn"]) == sorted(said["frames"])
    found = verify(trace)
    assert found["exact"] is True, found
    assert found["splits"]["decoys_2m"] > 0, found["splits"]


def test_an_image_for_kexec_makes_its_control_page_executable_and_plain_again(tmp_path: Path) -> None:
    """Three changes an image on the direct map itself: set_memory_rox, then set_memory_nx and set_memory_rw."""
    trace = record("kexec", tmp_path / "kexec", "--memory", "4G", kernel="7.2")
    assert json.loads((trace / "lab.json").read_text())["load"]["statistics"]["counts"]["images_loaded"] == 8
    changes = open_trace(trace).table("changes").to_pandas()
    freed_of_nx = changes[(changes["space"] == Space.DIRECT_MAP) & (changes["mask_clr"] & int(Pte.NX) != 0)]
    assert len(freed_of_nx) == 8
    for pfn in freed_of_nx["pfn"]:
        assert (changes["pfn"] == pfn).sum() % 3 == 0
    assert verify(trace)["exact"] is True
