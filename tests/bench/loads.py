"""The loads: what each is, how it is started, how long it may take."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from collect.errors import HostError
from tests.bench.build import FILES_PER_CPU

__all__ = ["BUILD", "LOADS", "POPULATE", "POPULATE_ALL_CPUS", "Load", "Settings", "compiled"]

HERE = Path(__file__).parent
POPULATE, POPULATE_ALL_CPUS, BUILD = "populate-and-drop", "populate-and-drop-all-cpus", "build"
LOADS = (POPULATE, POPULATE_ALL_CPUS, BUILD)
SLOWEST = 30
"""A tracer may slow a load this many times before its run is given up."""
START_SECONDS = 120.0


@dataclass(frozen=True)
class Settings:
    """How much of each load.

    Attributes:
        seconds: of one run of populate-and-drop.
        megabytes: that it maps at once.
        files: that the build compiles.
        n_cpus: that loads may use.
    """

    seconds: float = 5.0
    megabytes: int = 64
    n_cpus: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    files: int = 0

    @property
    def n_files(self) -> int:
        return self.files or FILES_PER_CPU * self.n_cpus


@dataclass(frozen=True)
class Load:
    """One load. `argv` takes the file for the result as one more argument, behind those given here."""

    name: str
    program: tuple[str, ...]
    options: tuple[str, ...]
    processes: int
    limit_seconds: float

    def argv(self, result: Path) -> list[str]:
        return [*self.program, str(result), *self.options]


def compiled(scratch: Path) -> Path:
    """`populate_and_drop`, compiled into `scratch`. Raises HostError with the compiler's first line."""
    program = scratch / "populate_and_drop"
    done = subprocess.run(
        ["gcc", "-O2", "-Wall", "-o", program, HERE / "populate_and_drop.c"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise HostError(f"populate_and_drop.c: gcc refuses it ({(done.stderr.splitlines() or ['?'])[0]}); report this")
    return program


def load(name: str, settings: Settings, scratch: Path) -> Load:
    """The load of that name, its program or sources below `scratch`."""
    if name == BUILD:
        program: tuple[str, ...] = (sys.executable, str(HERE / "build.py"), str(scratch / "sources"))
        limit = START_SECONDS + SLOWEST * settings.n_files / settings.n_cpus
        return Load(name, program, ("--files", str(settings.n_files)), settings.n_cpus, limit)
    processes = settings.n_cpus if name == POPULATE_ALL_CPUS else 1
    program = (str(scratch / "populate_and_drop"), str(settings.megabytes), str(settings.seconds), str(processes))
    return Load(name, program, (), processes, START_SECONDS + SLOWEST * settings.seconds)
