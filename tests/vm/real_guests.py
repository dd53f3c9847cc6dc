"""What the tests that boot a kernel have in common: when they run, and how they record, run and verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

__all__ = ["MARKS", "record", "run", "verify"]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 1500

MARKS = [
    pytest.mark.vm,
    pytest.mark.skipif(
        os.environ.get("DIRECTMAP_VM") != "1",
        reason="boots a kernel as root; run: DIRECTMAP_VM=1 .venv/bin/python -m pytest -m vm",
    ),
]


def _lab(*words: str, capture: bool = False) -> str:
    command = [sys.executable, "-m", "tests.vm", *words]
    stdout = subprocess.PIPE if capture else None
    done = subprocess.run(
        command, cwd=ROOT, timeout=SECONDS, stdin=subprocess.DEVNULL, stdout=stdout, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)} left with {done.returncode}; what it said stands above"
    return done.stdout or ""


def record(load: str, out: Path, *options: str, kernel: str = "6.1") -> Path:
    """A trace of a load in a guest, in `out`."""
    _lab("record", "--kernel", kernel, "--load", load, *options, "-o", str(out))
    return out


def run(load: str, *options: str, kernel: str = "6.1") -> dict[str, Any]:
    """What a load says of itself after a run in a guest, without a recorder."""
    words = ["--kernel", kernel, "--for", load, *options, "--", "python3", f"tests/vm/loads/{load}.py"]
    said: dict[str, Any] = json.loads(_lab("run", *words, capture=True).splitlines()[-1])
    return said


def verify(trace: Path) -> dict[str, Any]:
    """What `analyze verify --json` says of a trace, exact or not."""
    command = [sys.executable, "-m", "analyze", "verify", str(trace), "--json"]
    done = subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found
