"""The published experiment, repeated: Aaron Lu's 0 to 2048 small BPF programs in 8 GB, on 5.10 and on 6.1.

Source: Aaron Lu, 2022-11, in the threads of "execmem_alloc for BPF programs" (DirectMap4k after 0, 512, 1024 and 2048
instances of sockex1, whose programs take three pages each, on v5.17 and v6.1-rc3).
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm import cache
from tests.vm.errors import LabError, status_of
from tests.vm.validation import books
from tests.vm.validation.cells import ROOT

__all__ = ["CELLS", "Experiment", "run", "table"]

PROGRAMS = (0, 512, 1024, 2048)
PAGES_A_PROGRAM = 3
_SPLIT_FRAME_KB = 2048
_PAGE_CACHE = "/var/tmp/page-cache"

# DirectMap4k in kB, as published.
PUBLISHED = {
    "fresh": (87_900, 462_684, 884_572, 1_654_620),
    "page cache full": (94_044, 538_460, 1_083_228, 2_340_700),
}


@dataclass(frozen=True)
class Experiment:
    """One kernel, one kind of memory."""

    kernel: str
    memory: str

    @property
    def name(self) -> str:
        return f"published-{self.kernel}-{'full' if self.memory != 'fresh' else 'fresh'}"

    def argv(self, out: Path) -> list[str]:
        """The lab's command; what the kernel counts is enough, so nothing is recorded."""
        load = ["python3", "/repo/tests/vm/loads/bpf.py", "--programs", str(PROGRAMS[-1]), "--seconds", "3000"]
        load += ["--page-cache", _PAGE_CACHE] if self.memory != "fresh" else []
        argv = [sys.executable, "-m", "tests.vm", "run", "--kernel", self.kernel, "--memory", "8G", "--cpus", "1"]
        return [*argv, "--timeout", "3600", "--out", str(out), "--", *load, "--stats", "/out/load.json"]


CELLS = [Experiment(kernel, memory) for kernel in ("5.10", "6.1") for memory in PUBLISHED]


def run(cell: Experiment) -> None:
    """Run it, unless its line is there."""
    if cell.name in books.read(books.PUBLISHED):
        return
    cache.say(f"running {cell.name}")
    with tempfile.TemporaryDirectory(prefix="directmap-published-") as folder:
        status = status_of(cell.argv(Path(folder)), cwd=ROOT)
        if status != 0:
            raise LabError(f"{cell.name}: the guest left with status {status}. Try again.")
        told = json.loads((Path(folder) / "load.json").read_text(encoding="utf-8"))
    if told.get("cut_short"):
        raise LabError(f"{cell.name}: {told['seconds']} s were not enough for {PROGRAMS[-1]} programs. Give it more.")
    line = {name: told[name] for name in ("kernel", "course", "counts", "page_cache_mb", "options")}
    books.add(books.PUBLISHED, {"name": cell.name, "date": books.now(), **line})


def table() -> str:
    """DirectMap4k after each number of programs beside what was published, and pages per split frame."""
    known = books.read(books.PUBLISHED)
    lines = [
        "| kernel | memory | DirectMap4k in kB after 0 / 512 / 1024 / 2048 programs | 2M frames split | pages a split frame |",
        "|---|---|---|--:|--:|",
    ]
    for memory, published in PUBLISHED.items():
        lines.append(_row("v5.17, as published", memory, published))
        for cell in CELLS:
            told = known.get(cell.name)
            if cell.memory == memory and told is not None:
                lines.append(_row(told["kernel"], memory, _course(told)))
    return "\n".join(lines)


def _course(told: dict[str, Any]) -> tuple[int, ...]:
    at = {step["programs"]: step["DirectMap4k"] for step in told["course"]}
    return tuple(at[number] for number in PROGRAMS)


def _row(kernel: str, memory: str, course: tuple[int, ...]) -> str:
    frames = (course[-1] - course[0]) / _SPLIT_FRAME_KB
    ratio = f"{PROGRAMS[-1] * PAGES_A_PROGRAM / frames:.1f}" if frames else "-"
    return f"| {kernel} | {memory} | {' / '.join(f'{kb:,}' for kb in course)} | {frames:,.0f} | {ratio} |"
