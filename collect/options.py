"""What to record and how, as asked for, and the manifest that a recording begins with."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from collect import __version__
from collect.host import cpu_facts, kernel_facts, lockdown
from collect.kernel import Kernel
from collect.manifest import FORMAT
from collect.schema import FORMAT_VERSION

__all__ = ["Options", "first_manifest"]


@dataclass
class Options:
    """What to record and how.

    Attributes:
        output: directory of the trace.
        force: replace a trace that is there.
        pages: `scoped`, `all` or `none`.
        only_pages: page events alone, where changes cannot be seen.
        sample: one page block in so many.
        max_overhead: per cent of all CPUs' time that page programs may take; None: no limit.
        snapshot_every: seconds between snapshots of the page tables while recording; None: only when asked for.
        live: a table on the terminal.
        command_line: as it goes into the manifest.
        ring_bytes: size of the rings of all page events together, to try what happens when they are full; None: as usual.
    """

    output: Path
    force: bool = False
    pages: str = "scoped"
    only_pages: bool = False
    sample: int = 1
    max_overhead: float | None = None
    snapshot_every: float | None = None
    live: bool = False
    command_line: Sequence[str] = ()
    ring_bytes: int | None = None


def first_manifest(kernel: Kernel, options: Options) -> dict[str, Any]:
    """What is known before anything is attached; see `manifest.REQUIRED`."""
    now = time.monotonic_ns()
    raw = ["raw_tracepoint:mm_page_alloc", "raw_tracepoint:mm_page_free"] if options.pages != "none" else []
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": __version__,
        "complete": False,
        "command": list(options.command_line),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "clock": "CLOCK_MONOTONIC",
        "ts_start_ns": now,
        "ts_end_ns": now,
        "kernel": kernel_facts() | {"lockdown": lockdown()},
        "cpu": cpu_facts(),
        "memory": kernel.memory,
        "recorder": {"pid": os.getpid(), "tgid": os.getpid()},
        "probes": {
            "attached": (kernel.features.attached if kernel.walker else []) + raw,
            "missing": [vars(missing) for missing in kernel.missing],
        },
        "sampling": {"pages": options.pages, "page_sample": options.sample, "only_pages": options.only_pages},
        "losses": {},
    }
