"""Loads that need more than processors and memory do in a real guest what they say.

Boots guests as root: python3 -m tests.vm setup (once), then DIRECTMAP_VM=1 .venv/bin/python -m pytest -m vm
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 900
KB_PER_GB = 2**20

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        os.environ.get("DIRECTMAP_VM") != "1",
        reason="boots a kernel as root; run: DIRECTMAP_VM=1 .venv/bin/python -m pytest -m vm",
    ),
]


def statistics(load: str, *options: str) -> dict[str, Any]:
    """What a load says of itself after a run in a guest with Debian's 6.1."""
    command = [sys.executable, "-m", "tests.vm", "run", "--kernel", "6.1", "--memory", "4G", *options]
    command += ["--", "python3", f"tests/vm/loads/{load}.py"]
    done = subprocess.run(
        command, cwd=ROOT, timeout=SECONDS, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} left with {done.returncode}; what it said stands above"
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def test_memory_is_plugged_in_and_out_and_the_direct_map_follows() -> None:
    told = statistics("hotplug", "--slots", "2G", "--monitor")
    counts = told["counts"]
    assert counts["megabytes_plugged"] == 1024 + 512
    assert counts["dimms_unplugged"] == 1, counts
    assert counts["blocks_online"] == (1024 + 512) // 128, counts
    change = told["direct_map_change"]
    grown = sum(kb for name, kb in change.items() if name.startswith("DirectMap"))
    assert grown == KB_PER_GB, f"the DIMM that stayed has 1 GB, the kernel maps {grown} kB more: {change}"
