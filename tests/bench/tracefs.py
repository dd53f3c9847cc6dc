"""tracefs, which perf and bpftrace read tracepoints from: mounted in a mount namespace of the benchmark's own.

So whatever is mounted here, also by a tracer (trace-cmd mounts debugfs, and leaves it), is gone with the last process
the benchmark, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

__all__ = ["mount_apart"]

MOUNT_POINT = Path("/sys/kernel/tracing")
CLONE_NEWNS = 0x0002_0000
"""include/uapi/linux/sched.h; os.unshare came with Python 3.12."""


def mount_apart() -> str | None:
    """Leave the machine's mount namespace and see to it that tracefs is there. Returns in one line why not, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        return f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}"
    commands = [["mount", "--make-rprivate", "/"]]
    if not (MOUNT_POINT / "events").is_dir():
        commands.append(["mount", "-t", "tracefs", "tracefs", str(MOUNT_POINT)])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip() or f'status {done.returncode}'}"
    return None
