"""What is recorded for the validation, and which recording predicts which.

A recording is a load on a kernel, with fresh or aged memory, from a seed. A run is two of them of the same load, memory
and seed: the first is replayed under a policy, the second tells what the kernel that has that policy did.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EARLIER", "HOME", "LOADS", "MEMORIES", "RFC", "ROOT", "RUNS", "Recorded", "Run"]

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / "lab" / "validate"

LOADS: dict[str, tuple[str, str]] = {
    # name: arguments of tests/vm/loads/users.py, arguments of the recorder
    "users": ("--modules 100 --programs 50", "--pages none"),
    "secret": ("--secrets 120", ""),
    "modules": ("--modules 100", "--pages none"),
    "mixed": ("--modules 60 --programs 40 --secrets 60", ""),
}
MEMORIES = ("fresh", "aged")

# Trials with seed 1 decided how large the loads are and how wide the intervals (replay/another_run.py).
SEEDS = range(11, 18)


@dataclass(frozen=True, order=True)
class Recorded:
    """One recording."""

    load: str
    kernel: str
    memory: str
    seed: int

    @property
    def name(self) -> str:
        """Its folder's name, and what a pattern is held against."""
        return f"{self.load}-{self.kernel}-{self.memory}-{self.seed}"

    @property
    def folder(self) -> Path:
        return HOME / self.name

    @property
    def argv(self) -> list[str]:
        """The lab's command that makes it. One CPU, so that two runs of a seed differ by the kernel alone."""
        load, recorder = LOADS[self.load]
        argv = [sys.executable, "-m", "tests.vm", "record", "--kernel", self.kernel, "--load", "users"]
        argv += ["--cpus", "1", "--memory", "4G", "--seed", str(self.seed), "--timeout", "1200"]
        argv += ["--aged"] if self.memory == "aged" else []
        argv += ["--recorder-args", recorder] if recorder else []
        return [*argv, "--load-args", load, "-o", str(self.folder.relative_to(ROOT))]


@dataclass(frozen=True, order=True)
class Run:
    """One prediction: `source`, replayed under `policy`, against what `target` did."""

    source: Recorded
    target: Recorded
    policy: str

    @property
    def name(self) -> str:
        source, target = self.source, self.target
        return f"{source.load}-{source.kernel}-{target.kernel}-{source.memory}-{source.seed}"


def _runs(seeds: Iterable[int], *pairs: tuple[str, str, str, str]) -> list[Run]:
    """Seeds outermost, so that a matrix that was stopped has a bit of everything."""
    return [
        Run(Recorded(load, source, memory, seed), Recorded(load, target, memory, seed), policy)
        for seed in seeds
        for memory in MEMORIES
        for load, source, target, policy in pairs
    ]


RUNS = _runs(
    SEEDS,
    ("users", "5.10", "6.1", "prog-pack"),
    ("users", "6.12", "7.2", "rox-cache"),
    ("secret", "6.1", "6.12", "none"),
)

EARLIER = _runs(range(11, 15), ("code", "5.10", "6.1", "prog-pack"), ("code", "6.12", "7.2", "rox-cache"))
"""An earlier series, not counted: there each kernel chose its modules by itself, among those that need no other there, and 3 to
17 of 100 were not the same on the second kernel."""

RFC = [
    Recorded(load, "6.1", memory, seed)
    for seed in (11, 12)
    for memory in MEMORIES
    for load in ("modules", "secret", "mixed")
]
"""Replayed under `gfp-unmapped`, for whoever has a 6.1 kernel with the RFC's patches to hold against it."""
