"""Records `churn` over a pairwise cover of kernels and machines, and verifies every recording: `make test-kernels`.

Each cell leaves a JSON in lab/matrix/; a cell that is exact for the collect/ and analyze/ at hand is not run again, so
an interrupted matrix goes on where it stopped. The tables in docs/kernels.md and README.md are made from the JSONs
alone.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from collect.schema import LEAF_PAGES, Level, Moment, Space
from collect.trace import open_trace
from tests.vm import cache, kernels, matrix_tables, shell
from tests.vm.cover import cover
from tests.vm.errors import LabError, leave, status_of

__all__ = ["FACTORS", "MachineCell", "main", "possible"]

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "lab" / "matrix"

FACTORS: dict[str, tuple[Any, ...]] = {
    "kernel": ("5.10", "6.1", "6.12", "7.2"),
    "levels": (4, 5),
    "flavour": kernels.FLAVOURS,
    "cpus": (1, 2, 3, 4),
    "gigabytes": (4, 12),
}

OTHERS: tuple[tuple[Any, ...], ...] = (
    ("6.16", 4, "amd64", 2, 4),
    ("6.17", 5, "cloud-amd64", 1, 4),
    ("6.18", 4, "cloud-amd64", 4, 4),
    ("7.3", 4, "amd64", 3, 4),
)
"""One machine for every other kernel that Debian's archive holds with its modules: the recorder asks for features, and between versions
they come and go."""

SCALE = 0.4
"""Of churn: enough to split frames in every cell, in a minute or two."""
SNAPSHOT_EVERY_S = 7
"""Between them the state is held against the page tables too; in an emulated guest a reading takes a second or two."""


def possible(*, kernel: str, levels: int, **_: object) -> bool:
    """Debian's 5.10 has CONFIG_X86_5LEVEL unset; every other combination exists."""
    return not (kernel == "5.10" and levels == 5)


@dataclass(frozen=True)
class MachineCell:
    """One kernel on one machine."""

    kernel: str
    levels: int
    flavour: str
    cpus: int
    gigabytes: int

    @property
    def name(self) -> str:
        """What names its files, and what a pattern is held against."""
        return f"{self.kernel}-{self.flavour}-{self.levels}level-{self.cpus}cpu-{self.gigabytes}G"

    def record_argv(self, target: Path, *, scale: float, seed: int, timeout: float) -> list[str]:
        """The lab's command that records it."""
        argv = [sys.executable, "-m", "tests.vm", "record", "--kernel", self.kernel, "--flavour", self.flavour]
        argv += ["--la57" if self.levels == 5 else "--no-la57", "--cpus", str(self.cpus)]
        argv += ["--memory", f"{self.gigabytes}G", "--timeout", f"{timeout:g}", "--seed", str(seed)]
        argv += ["--recorder-args", f"--snapshot-every {SNAPSHOT_EVERY_S}"]
        return [*argv, "--load", "churn", "--load-args", f"--scale {scale:g}", "--force", "-o", str(target)]


@dataclass(frozen=True)
class Tool:
    """What is being tested: the two packages that decide whether a recording verifies."""

    commit: str
    collect: str  # git's hash of the tree
    analyze: str
    dirty: bool  # changes in either that are not committed

    @classmethod
    def here(cls) -> Tool:
        """Of this checkout."""

        def git(*words: str) -> str:
            return shell.run(["git", "-C", ROOT, *words], what="asking git for the tool's version").strip()

        return cls(
            commit=git("rev-parse", "--short=12", "HEAD"),
            collect=git("rev-parse", "HEAD:collect"),
            analyze=git("rev-parse", "HEAD:analyze"),
            dirty=bool(git("status", "--porcelain", "--", "collect", "analyze")),
        )

    def same(self, told: dict[str, Any]) -> bool:
        """Is a result one of this very tool? One of uncommitted changes never is."""
        clean = not self.dirty and not told["dirty"]
        return clean and (told["collect"], told["analyze"]) == (self.collect, self.analyze)


def result_of(cell: MachineCell) -> dict[str, Any] | None:
    """The cell's JSON, or None where there is none."""
    path = HOME / f"{cell.name}.json"
    if not path.exists():
        return None
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return told


def run_cell(cell: MachineCell, tool: Tool, *, scale: float, seed: int, timeout: float) -> dict[str, Any]:
    """Record, verify, and write the cell's JSON; the trace stays only where something is wrong."""
    target = HOME / cell.name
    began = time.monotonic()
    argv = cell.record_argv(target, scale=scale, seed=seed, timeout=timeout)
    told: dict[str, Any] = {
        "cell": vars(cell),
        "tool": vars(tool),
        "load": {"name": "churn", "scale": scale, "seed": seed},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "good": False,
    }
    status = status_of(argv, cwd=ROOT)
    if status != 0:
        told["why"] = f"the recording left with status {status}"
    else:
        told |= _verified(target)
        told |= _found(target, cell, told.get("verify"))
    told["good"] = "why" not in told
    told["host_seconds"] = round(time.monotonic() - began)
    fresh = HOME / f".{cell.name}.json"
    fresh.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    fresh.rename(HOME / f"{cell.name}.json")
    if told["good"]:
        shutil.rmtree(target)
    return told


def _verified(target: Path) -> dict[str, Any]:
    """What `analyze verify --json` says, without its lists of single pages."""
    argv = [sys.executable, "-m", "analyze", "verify", str(target), "--json"]
    done = subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        return {"why": f"verify left with status {done.returncode}: {done.stderr.strip()}"}
    said = json.loads(done.stdout)
    kept = {key: value for key, value in said.items() if key not in ("unexplained", "rule_mismatch_list")}
    kept["between"] = {key: value for key, value in said["between"].items() if key != "list"}
    return {"verify": kept} if said["exact"] else {"verify": kept, "why": _not_exact(said)}


def _not_exact(said: dict[str, Any]) -> str:
    """Which of verify's checks failed, with their counts."""
    counts = ("level_mismatches", "attribute_mismatches", "rule_mismatches", "unfinished_calls")
    found = [f"{said[name]:,} {name.replace('_', ' ')}" for name in counts if said[name]]
    found += [f"{said['between']['differ']:,} snapshots between differ"] if said["between"]["differ"] else []
    found += [f"{n:,} lost: {name}" for name, n in said["losses"].items()]
    if said["splits"]["agree"] is False:
        found.append("split counters disagree")
    if not said["end_snapshot"]:
        found.append("no end snapshot")
    return ", ".join(found) or "not exact"


def _found(target: Path, cell: MachineCell, verify: dict[str, Any] | None) -> dict[str, Any]:
    """What the guest was, by its own account; it must be the machine that the cell asked for."""
    trace = open_trace(target)
    memory, cpu = trace.manifest["memory"], trace.manifest["cpu"]
    told: dict[str, Any] = {
        "release": trace.manifest["kernel"]["release"],
        "levels": memory["paging_levels"],
        "cpus": cpu["n_online"],
        "pages": sum(end - first for first, end in memory["ranges"]),
        "start": leaves_at_start(target),
    }
    # The firmware keeps some memory to itself; rounded, "4G" and "3G" are still told apart.
    gigabytes = round(told["pages"] / LEAF_PAGES[Level.G1])
    asked = (cell.levels, cell.cpus, cell.gigabytes)
    if (told["levels"], told["cpus"], gigabytes) != asked:
        told["why"] = (
            f"the guest had (levels, CPUs, GB) {(told['levels'], told['cpus'], gigabytes)}, asked were {asked}"
        )
    elif verify is not None and verify["exact"] and not verify["splits"]["found_2m"]:
        told["why"] = "exact, but nothing was split, so nothing was shown"
    return told


def leaves_at_start(target: Path) -> dict[str, int]:
    """Leaf entries of the direct map in the start snapshot, by level."""
    table = open_trace(target).table("snapshots")
    columns = {name: table[name].to_numpy() for name in ("moment", "space", "level", "n_leaves")}
    mine = (columns["moment"] == Moment.START) & (columns["space"] == Space.DIRECT_MAP)
    return {
        name: int(columns["n_leaves"][mine & (columns["level"] == level)].sum())
        for name, level in (("4k", Level.K4), ("2m", Level.M2), ("1g", Level.G1))
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="make test-kernels", description=__doc__.partition("\n")[0] if __doc__ else ""
    )
    parser.add_argument(
        "--cells", default="*", metavar="PATTERNS", help="only these: 6.1-*, '5.10-* *-4cpu-*' (shell patterns)"
    )
    parser.add_argument("--list", action="store_true", help="print the cells and what is known of each; run nothing")
    parser.add_argument("-k", "--keep-going", action="store_true", help="go on after a cell that is not exact")
    parser.add_argument("--again", action="store_true", help="run cells that are exact already, too")
    parser.add_argument(
        "--timeout", type=float, default=600, metavar="SECONDS", help="for each guest; default: %(default)s"
    )
    parser.add_argument("--scale", type=float, default=SCALE, help="of the load; default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the load; default: %(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing; returns 0 where every chosen cell is exact, and 1 where one is not."""
    options = _parser().parse_args(arguments)
    matrix = sorted((MachineCell(*cell) for cell in (*cover(FACTORS, possible), *OTHERS)), key=_version)
    chosen = [cell for cell in matrix if any(fnmatchcase(cell.name, pattern) for pattern in options.cells.split())]
    if not chosen:
        raise LabError(f"No cell is named {options.cells}. List them: python3 -m tests.vm.matrix --list")
    HOME.mkdir(parents=True, exist_ok=True)
    tool = Tool.here()
    load = {"name": "churn", "scale": options.scale, "seed": options.seed}
    bad = []
    for number, cell in enumerate(chosen, start=1):
        told = result_of(cell)
        done = told is not None and told["good"] and told["load"] == load and tool.same(told["tool"])
        if options.list:
            print(f"{cell.name:32} {_known(told, done)}")
            continue
        if done and not options.again:
            cache.say(f"{number}/{len(chosen)} {cell.name}: exact already")
            continue
        cache.say(f"{number}/{len(chosen)} {cell.name}")
        told = run_cell(cell, tool, scale=options.scale, seed=options.seed, timeout=options.timeout)
        cache.say(f"{number}/{len(chosen)} {cell.name}: {_known(told, told['good'])} ({told['host_seconds']} s)")
        if not told["good"]:
            bad.append(cell.name)
            if not options.keep_going:
                break
    if options.list:
        return 0
    matrix_tables.write(ROOT, [(cell.name, vars(cell), result_of(cell)) for cell in matrix], tool.same)
    if bad:
        cache.say(f"not exact: {', '.join(bad)}; what there is of their traces is kept in {HOME.relative_to(ROOT)}/")
    return 1 if bad else 0


def _version(cell: MachineCell) -> tuple[int, ...]:
    return tuple(int(part) for part in cell.kernel.split("."))


def _known(told: dict[str, Any] | None, done: bool) -> str:
    if told is None:
        return "not run"
    if not told["good"]:
        return f"NOT GOOD: {told['why']}"
    return "exact" if done else "exact, for another version of collect or analyze or another load"


if __name__ == "__main__":
    leave(main)
