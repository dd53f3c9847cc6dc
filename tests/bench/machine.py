"""Which machine, kernel, checkout and tools a result is from, and what this machine lacks for the benchmark."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from collect.errors import HostError
from collect.host import cpu_facts

__all__ = ["describe", "require"]

ROOT = Path(__file__).parents[2]
PACKAGES = {"gcc": "gcc", "make": "make", "perf": "linux-perf", "bpftrace": "bpftrace"}
"""Program to Debian package, of what the benchmark cannot do without."""
BCC = Path("/usr/lib/python3/dist-packages/bcc/__init__.py")


def require(programs: Sequence[str]) -> None:
    """Raises HostError that names in one line all that is missing."""
    if os.geteuid() != 0:
        raise HostError("the benchmark loads BPF programs and mounts tracefs: run it as root (sudo make bench-collect)")
    missing = [PACKAGES.get(name, name) for name in programs if shutil.which(name) is None]
    if missing:
        raise HostError(f"missing for the benchmark: {', '.join(missing)}; apt install {' '.join(missing)}")


def describe() -> dict[str, Any]:
    """The heading of a result."""
    cpu = cpu_facts()
    return {
        "cpu": cpu["model"],
        "n_cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "hypervisor": _hypervisor(),
        "emulated": cpu["emulated"],
        "kernel": platform.release(),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": _commit(),
        "tools": {
            "perf": _version("perf", "--version"),
            "bpftrace": _version("bpftrace", "--version"),
            "gcc": _version("gcc", "--version"),
        },
    }


def _hypervisor() -> str:
    for line in _output("lscpu").splitlines():
        if line.startswith("Hypervisor vendor:"):
            return line.partition(":")[2].strip()
    return "none"


def _commit() -> str:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD").strip() or "unknown"
    changed = _output(
        "git",
        "-C",
        str(ROOT),
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "collect",
        "analyze",
        "replay",
        "tests/bench",
    )
    return f"{commit}, with changes" if changed.strip() else commit


def _version(*command: str) -> str | None:
    return next(iter(_output(*command).splitlines()), None)


def _output(*command: str) -> str:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"}
        ).stdout
    except OSError:
        return ""
