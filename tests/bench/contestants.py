"""Who records the load: nobody, our recorder, perf, bpftrace, trace-cmd. How each is started, and what it wrote."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from collect.schema import PageEvent
from tests.bench import perf_data

__all__ = ["OURS_ALL", "OURS_DEFAULT", "UNTRACED", "Contestant", "Recorded", "contestants"]

UNTRACED, OURS_ALL, OURS_DEFAULT = "untraced", "ours-all", "ours-default"
TRACEPOINTS = ("kmem:mm_page_alloc", "kmem:mm_page_free")


@dataclass
class Recorded:
    """What a tracer wrote in one run.

    Attributes:
        events: page events in its output.
        lost: page events that it says it lost.
        n_bytes: size of its output on disk.
        load_allocated, load_freed: pages allocated and freed by the load's processes, where the output tells.
        losses: `lost` by class, where it tells.
    """

    events: int
    lost: int
    n_bytes: int
    load_allocated: int | None = None
    load_freed: int | None = None
    losses: dict[str, int] = field(default_factory=dict)


class Contestant:
    """Nobody, and what all others have in common. `command` starts the load, `recorded` reads what was written."""

    name = UNTRACED
    title = "untraced"
    program: str | None = None
    """What has to be installed."""
    needs_tracefs = False

    def command(self, load: Sequence[str], folder: Path) -> list[str]:
        return list(load)

    def recorded(self, folder: Path, pids: Sequence[int]) -> Recorded:
        return Recorded(0, 0, 0)

    @property
    def lesser(self) -> Contestant | None:
        """The same with less, to be tried where this one is refused."""
        return None

    def missing(self) -> str | None:
        """The program that has to be installed first, or None."""
        return self.program if self.program and shutil.which(self.program) is None else None


class Ours(Contestant):
    """Our recorder, at default settings or with every page event.

    Args:
        recorder: the command that starts it.
        whole: with everything that a recording has. Without, page events alone, for a kernel that allows no more.
    """

    def __init__(self, name: str, recorder: Sequence[str], *, whole: bool = True) -> None:
        self.name, self._recorder, self._whole = name, recorder, whole
        self.title = "directmap, --pages all" if name == OURS_ALL else "directmap, default"
        if not whole:
            self.title += ", page programs only"

    @property
    def lesser(self) -> Ours | None:
        return Ours(self.name, self._recorder, whole=False) if self._whole else None

    def command(self, load: Sequence[str], folder: Path) -> list[str]:
        output = ["-o", str(folder / "trace"), "--", *load]
        if self._whole:
            return [*self._recorder, "record", *(["--pages", "all"] if self.name == OURS_ALL else []), *output]
        if self.name == OURS_ALL:
            return [*self._recorder, "record", "--only-pages", "--pages", "all", *output]
        return [sys.executable, "-m", "tests.bench.default_recording", *output]

    def recorded(self, folder: Path, pids: Sequence[int]) -> Recorded:
        manifest: dict[str, Any] = json.loads((folder / "trace" / "manifest.json").read_text())
        segments = manifest["tables"]["pages"]
        losses = {name: n for name, n in manifest["losses"].items() if n}
        found = Recorded(
            events=sum(segment["rows"] for segment in segments),
            lost=sum(losses.values()),
            n_bytes=sum((folder / "trace" / segment["file"]).stat().st_size for segment in segments),
            losses=losses,
        )
        if pids and self.name == OURS_ALL:
            found.load_allocated, found.load_freed = _pages_of(
                [folder / "trace" / segment["file"] for segment in segments], pids
            )
        return found


def _pages_of(files: Sequence[Path], pids: Sequence[int]) -> tuple[int, int]:
    """Pages that the processes `pids` allocated and freed, in the files of a trace's table `pages`."""
    allocated = freed = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(1 << 20, columns=["event", "order", "pid"]):
            event, order, pid = (np.asarray(batch.column(name)) for name in ("event", "order", "pid"))
            n_pages = np.where(np.isin(pid, pids), np.uint64(1) << order.astype(np.uint64), 0)
            allocated += int(n_pages[event != PageEvent.FREE].sum())
            freed += int(n_pages[event == PageEvent.FREE].sum())
    return allocated, freed


class Perf(Contestant):
    name, title, program, needs_tracefs = "perf", "perf record", "perf", True

    def command(self, load: Sequence[str], folder: Path) -> list[str]:
        events = [word for tracepoint in TRACEPOINTS for word in ("-e", tracepoint)]
        return ["perf", "record", "-a", *events, "-o", str(folder / "perf.data"), "--", *load]

    def recorded(self, folder: Path, pids: Sequence[int]) -> Recorded:
        file = folder / "perf.data"
        samples, lost = perf_data.count(file)
        return Recorded(samples, lost, file.stat().st_size)


class Bpftrace(Contestant):
    """Prints what a row of our table `pages` holds."""

    name, title, program, needs_tracefs = "bpftrace", "bpftrace, printf", "bpftrace", True
    SCRIPT = (
        'tracepoint:kmem:mm_page_alloc { printf("a %llu %d %d %lx %d %x %d\\n", nsecs, cpu, tid, args->pfn, '
        "args->order, args->gfp_flags, args->migratetype); } "
        'tracepoint:kmem:mm_page_free { printf("f %llu %d %d %lx %d\\n", nsecs, cpu, tid, args->pfn, args->order); }'
    )

    def command(self, load: Sequence[str], folder: Path) -> list[str]:
        (folder / "load.sh").write_text(f"exec {shlex.join(load)}\n")
        return ["bpftrace", "-o", str(folder / "events.txt"), "-e", self.SCRIPT, "-c", f"/bin/sh {folder / 'load.sh'}"]

    def recorded(self, folder: Path, pids: Sequence[int]) -> Recorded:
        text = (folder / "events.txt").read_bytes()
        lost = sum(
            int(n) for part in (text, (folder / "stderr").read_bytes()) for n in re.findall(rb"Lost (\d+) events", part)
        )
        return Recorded(text.count(b"\na ") + text.count(b"\nf "), lost, len(text))


class TraceCmd(Contestant):
    name, title, program, needs_tracefs = "trace-cmd", "trace-cmd record", "trace-cmd", True

    def command(self, load: Sequence[str], folder: Path) -> list[str]:
        events = [word for tracepoint in TRACEPOINTS for word in ("-e", tracepoint)]
        return ["trace-cmd", "record", *events, "-o", str(folder / "trace.dat"), *load]

    def recorded(self, folder: Path, pids: Sequence[int]) -> Recorded:
        file = folder / "trace.dat"
        report = subprocess.Popen(
            ["trace-cmd", "report", "-i", file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with report:
            assert report.stdout is not None
            events = sum(b": mm_page_" in line for line in report.stdout)
        said = (folder / "stdout").read_bytes() + (folder / "stderr").read_bytes()
        lost = sum(int(n) for n in re.findall(rb"overrun: (\d+)", said))
        return Recorded(events, lost, file.stat().st_size)


def contestants(recorder: Sequence[str]) -> list[Contestant]:
    """All of them, `untraced` first. `recorder`: the command that starts ours."""
    return [
        Contestant(),
        Ours(OURS_DEFAULT, recorder),
        Ours(OURS_ALL, recorder),
        Perf(),
        Bpftrace(),
        TraceCmd(),
    ]
