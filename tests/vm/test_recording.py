"""A recording on a real kernel, made by our recorder in a guest, verifies exactly.

Boots a guest as root: python3 -m tests.vm setup (once), then DIRECTMAP_VM=1 .venv/bin/python -m pytest -m vm
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vm.real_guests import MARKS, ROOT, record, verify

pytestmark = MARKS


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the churn load on Debian's 6.1."""
    return record("churn", tmp_path_factory.mktemp("lab") / "6.1-churn", "--load-args", "--scale 0.3")


@pytest.fixture(scope="module")
def verification(recording: Path) -> dict[str, Any]:
    """What `analyze verify --json` says of it."""
    return verify(recording)


def test_every_page_is_explained_and_nothing_was_lost(verification: dict[str, Any]) -> None:
    assert verification["pages_compared"] > 1_000_000
    assert verification["level_mismatches"] == 0, verification
    assert verification["attribute_mismatches"] == 0, verification
    assert verification["rule_mismatches"] == 0, verification
    assert verification["lost_events"] == 0, verification
    assert verification["exact"] is True, verification


def test_the_load_broke_something_up_that_the_kernel_counted_too(verification: dict[str, Any]) -> None:
    splits = verification["splits"]
    assert splits["found_2m"] >= 20, splits
    assert splits["counted_2m"] is not None, "6.1 counts splits in /proc/vmstat"


def test_every_split_was_seen_as_it_was_done(verification: dict[str, Any]) -> None:
    seen = verification["splits_observed"]
    assert seen is not None, "the probe at flush_tlb_all is there on 6.1"
    assert seen["count"] >= 20
    assert seen["leaves_that_differ"] == 0, seen["list"]


def test_a_report_can_be_made_of_it(recording: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analyze", "report", str(recording), "-o", str(tmp_path / "report")]
    subprocess.run(command, cwd=ROOT, timeout=300, check=True)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Linux 6.1" in page
