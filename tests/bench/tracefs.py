"""tracefs, which perf and bpftrace read tracepoints from: mounted for as long as the benchmark runs, if it was not."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["mounted"]

MOUNT_POINT = Path("/sys/kernel/tracing")


@contextmanager
def mounted() -> Iterator[str | None]:
    """None while tracefs is there; why not, in one line, where it cannot be mounted. What was mounted is taken away."""
    if (MOUNT_POINT / "events").is_dir():
        yield None
        return
    done = subprocess.run(
        ["mount", "-t", "tracefs", "tracefs", MOUNT_POINT], capture_output=True, text=True, check=False
    )
    if done.returncode:
        yield f"tracefs cannot be mounted at {MOUNT_POINT}: {done.stderr.strip() or os.strerror(done.returncode)}"
        return
    try:
        yield None
    finally:
        subprocess.run(["umount", MOUNT_POINT], check=False)
