"""Watches a tracer while it runs: CPU time and memory of its processes, without those of the load that it started."""

from __future__ import annotations

import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Memory", "Watch"]

POLL_SECONDS = 0.05
TICKS = os.sysconf("SC_CLK_TCK")
RESET_PEAK = "5"
"""Written to /proc/PID/clear_refs, sets VmHWM to what is resident now (Documentation/filesystems/proc.rst)."""


@dataclass(frozen=True)
class Memory:
    """Resident memory of a tracer at one moment, in bytes. `rings`: mappings of BPF maps, part of `total`."""

    ts: float
    total: int
    anon: int
    file: int
    shmem: int
    rings: int

    @property
    def own(self) -> int:
        """Without the rings."""
        return self.total - self.rings


@dataclass
class Watch:
    """What was seen of the tracer `pid` from the moment on at which `load_pid_file` names the load.

    Attributes:
        attach_cpu_seconds: what the tracer had used until then.
        attach_peak: its largest resident memory until then, in bytes (VmHWM): the compiler's share.
        memory: one sample a second from then on, if `every` is given.
        peak: largest resident memory after that, rings included, in bytes; 0 where the kernel does not let it be reset.
    """

    pid: int
    load_pid_file: Path
    every: float | None = None
    attach_cpu_seconds: float = 0.0
    attach_peak: int = 0
    peak: int = 0
    memory: list[Memory] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching; call it when the load has ended and before the tracer is reaped."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        load = self._wait_for_load()
        if load is None:
            return
        self.attach_cpu_seconds = sum(_cpu_seconds(pid) for pid in _tree(self.pid, load))
        self.attach_peak = max((_status(pid).get("VmHWM", 0) for pid in _tree(self.pid, load)), default=0)
        if self.every is None:
            return
        try:
            Path(f"/proc/{self.pid}/clear_refs").write_text(RESET_PEAK)
            can_reset = True
        except OSError:
            can_reset = False
        while not self._stop.wait(self.every) and Path(f"/proc/{load}").exists():
            pids = _tree(self.pid, load)
            sample = _memory(pids)
            if sample is not None:
                self.memory.append(sample)
            if can_reset:
                self.peak = _status(self.pid).get("VmHWM", self.peak)

    def _wait_for_load(self) -> int | None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                return int(self.load_pid_file.read_text())
            except (OSError, ValueError):  # not there yet, or not written yet
                continue
        return None


def _tree(root: int, without: int) -> list[int]:
    """`root` and its descendants, but for `without` and those below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(int(entry.name))
            if fields:
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        if pid != without:
            found.append(pid)
            todo += children.get(pid, [])
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name: state, ppid, ...; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that were waited for (utime, stime, cutime, cstime)."""
    return sum(int(ticks) for ticks in _stat(pid)[11:15]) / TICKS


def _status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(kb) << 10 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _memory(pids: list[int]) -> Memory | None:
    rows = [status for pid in pids if (status := _status(pid))]
    if not rows:
        return None
    total, anon, file, shmem = (
        sum(row.get(name, 0) for row in rows) for name in ("VmRSS", "RssAnon", "RssFile", "RssShmem")
    )
    return Memory(time.monotonic(), total, anon, file, shmem, sum(_rings(pid) for pid in pids))


def _rings(pid: int) -> int:
    """Resident bytes of mapped BPF maps. A ring's data is mapped twice, and counted twice, as in VmRSS."""
    try:
        text = Path(f"/proc/{pid}/smaps").read_text()
    except OSError:
        return 0
    sizes = re.findall(r"anon_inode:bpf-map\n(?:[A-Z]\w+:.*\n)*?Rss:\s+(\d+) kB", text)
    return sum(int(kb) for kb in sizes) << 10
