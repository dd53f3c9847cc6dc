"""A load of known numbers, recorded on real kernels: the regions hold just these, neither one more nor one less.

Boots guests as root: python3 -m tests.vm setup (once), then `make test-counts`, or for some kernels only:
DIRECTMAP_VM=1 DIRECTMAP_VM_KERNELS="6.1 7.2" .venv/bin/python -m pytest -m vm tests/vm/test_counted.py
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from collect.schema import RegionEvent, RegionKind
from collect.trace import open_trace
from tests.vm.loads.counted import MODULES, PROGRAMS, SECRET_PAGES
from tests.vm.real_guests import MARKS, record

KERNELS = os.environ.get("DIRECTMAP_VM_KERNELS", "6.1").split()

pytestmark = MARKS


@dataclass(frozen=True)
class Counted:
    """A recording of the load `counted`."""

    said: dict[str, Any]  # the load's statistics
    losses: dict[str, int]
    regions: pd.DataFrame  # with the column `name` beside the trace's own

    def of(self, kind: RegionKind, event: RegionEvent) -> pd.DataFrame:
        return self.regions[(self.regions["kind"] == kind) & (self.regions["event"] == event)]

    def freed(self, kind: RegionKind) -> list[int]:
        """Regions of a kind that a FREE names, as often as one does."""
        return sorted(self.of(kind, RegionEvent.FREE)["region_id"])

    def made(self, kind: RegionKind) -> list[int]:
        return sorted(self.of(kind, RegionEvent.ALLOC)["region_id"])


@pytest.fixture(scope="module", params=KERNELS)
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Counted:
    """One recording on each kernel."""
    out = record("counted", tmp_path_factory.mktemp("lab") / request.param, kernel=request.param)
    trace = open_trace(out)
    regions = trace.table("regions").to_pandas()
    regions["name"] = regions["name_id"].map(trace.table("strings").to_pandas().set_index("string_id")["text"])
    said = json.loads((out / "lab.json").read_text())["load"]["statistics"]
    return Counted(said, trace.manifest["losses"], regions)


def test_nothing_was_lost(counted: Counted) -> None:
    assert {name: n for name, n in counted.losses.items() if n} == {}


def test_every_module_is_there_by_its_name_once_loaded_and_once_freed(counted: Counted) -> None:
    assert counted.said["counts"]["modules_loaded"] == MODULES == 23
    assert counted.said["modules_come_besides"] == counted.said["modules_left"] == [], (
        "the load was not what it should be"
    )
    assert sorted(counted.of(RegionKind.MODULE, RegionEvent.ALLOC)["name"]) == counted.said["modules"]
    assert counted.freed(RegionKind.MODULE) == counted.made(RegionKind.MODULE)


def test_every_bpf_program_is_one_image(counted: Counted) -> None:
    """Held to the load's own processes: a trampoline or dispatcher that someone else makes is an image, too."""
    assert counted.said["counts"]["bpf_programs"] == PROGRAMS == 101
    images = counted.of(RegionKind.BPF_IMAGE, RegionEvent.ALLOC)
    mine = images[images["tgid"].isin(counted.said["processes"]["program"])]
    assert sorted(mine["tgid"]) == sorted(counted.said["processes"]["program"]), "one a process"
    freed = pd.Series(counted.freed(RegionKind.BPF_IMAGE))
    assert sorted(freed[freed.isin(mine["region_id"])]) == sorted(mine["region_id"]), "each freed, and once"


def test_every_secret_page_is_there_once_faulted_and_once_freed(counted: Counted) -> None:
    if counted.said["counts"].get("secret_unsupported"):
        assert not counted.made(RegionKind.SECRET_PAGE)
        return
    assert counted.said["counts"]["secret_pages"] == SECRET_PAGES == 211
    made = counted.of(RegionKind.SECRET_PAGE, RegionEvent.ALLOC)
    assert len(made) == 211
    assert set(made["tgid"]) == set(counted.said["processes"]["secret"])
    assert made["pfns"].map(len).eq(1).all(), "each is one page frame"
    assert counted.freed(RegionKind.SECRET_PAGE) == counted.made(RegionKind.SECRET_PAGE)
