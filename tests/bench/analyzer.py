"""How fast the analyzer answers, and in how much memory: `python3 -m tests.bench.analyzer` (`make bench-analyze`).

Records a build's page events on this machine (as root, unless --source names such a recording), makes traces of the
sizes asked for out of them, and times every answer in a fresh process, with an empty cache of compiled code and with a full one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from collect.errors import HostError
from tests.bench import machine
from tests.bench.markdown import publish
from tests.bench.scaled_trace import many_changes, many_pages, wide_host

ROOT = Path(__file__).parents[2]
STATE = ROOT / "sample_traces" / "7.2-churn"
POLL_SECONDS = 0.02
LIMIT_SECONDS = 1800
PACKAGES = ("numba", "numpy", "pyarrow", "pandas", "duckdb", "polars")
TERABYTE = 1 << 40


@dataclass(frozen=True)
class Run:
    """One answer: what, of which trace, with which cache; wall and CPU seconds of the process and its children, most
    resident memory of all of them together (sampled; shared pages count twice), and what it printed."""

    what: str
    trace: str
    cache: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    said: dict[str, Any]


def run(what: str, trace: Path, cache: Path, name: str) -> Run:
    """Time one task. Raises HostError where it fails."""
    before = os.times()
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.answer", what, str(trace)],
        cwd=ROOT,
        env=os.environ | {"NUMBA_CACHE_DIR": str(cache), "POLARS_MAX_THREADS": str(len(os.sched_getaffinity(0)))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(POLL_SECONDS)
        if time.monotonic() - began > LIMIT_SECONDS:
            process.kill()
    seconds = time.monotonic() - began
    out, err = process.communicate()
    if process.returncode:
        raise HostError(f"{what} of {trace.name} failed: {(err.strip().splitlines() or ['no word'])[-1][:300]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{what:<18} {trace.name:<8} {name:<6} {seconds:7.2f} s {cpu:7.2f} CPU s {peak / 1e6:7.0f} MB  {out.strip()[:90]}",
          file=sys.stderr, flush=True)  # fmt: skip
    return Run(what, trace.name, name, seconds, cpu, peak, json.loads(out))


def _resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    total, todo = 0, [pid]
    while todo:
        at = Path(f"/proc/{todo.pop()}")
        try:
            total += int((at / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            for task in (at / "task").iterdir():
                todo += [int(word) for word in (task / "children").read_text().split()]
        except (OSError, IndexError):
            continue
    return total


def record(folder: Path, seconds: float) -> Path:
    """Record every page event of a build on this machine. Raises HostError."""
    machine.require(["gcc", "make"])
    load = f"end=$(($(date +%s) + {seconds:.0f})); while [ $(date +%s) -lt $end ]; do {sys.executable} tests/bench/build.py {folder}/sources {folder}/out.json --files 40; done"
    done = subprocess.run(
        [sys.executable, "-m", "collect", "record", "--only-pages", "--pages", "all", "-o", str(folder / "native"), "--", "sh", "-c", load],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise HostError(f"recording page events failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    return folder / "native"


def made(folder: Path, source: Path | None, seconds: float, rows: int) -> dict[str, Path]:
    """The traces, by name; those that `folder` holds already are not made again."""
    folder.mkdir(parents=True, exist_ok=True)
    traces = {name: folder / name for name in ("tenth", "third", "whole", "changes", "wide")}
    missing = [name for name, path in traces.items() if not (path / "done").exists()]
    if missing:
        print(f"making traces in {folder} ...", file=sys.stderr, flush=True)
    if source is None and {"tenth", "third", "whole"}.intersection(missing):
        source = record(folder, seconds)
    for name in missing:
        shutil.rmtree(traces[name], ignore_errors=True)
        if name == "changes":
            many_changes(STATE, traces[name], 1_000_000)
        elif name == "wide":
            wide_host(STATE, traces[name], 4 * TERABYTE, 0.1)
        elif source is not None:
            many_pages(STATE, source, traces[name], rows // {"tenth": 10, "third": 3, "whole": 1}[name])
        (traces[name] / "done").touch()
    return traces


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows = int(args.events * 1e6)
    traces = made(folder, args.source, args.seconds, rows)
    if args.only_make:
        return {}
    runs: list[Run] = []
    for i in range(args.rounds):
        shutil.rmtree(folder / f"cold{i}", ignore_errors=True)
        runs.append(run("report", traces["whole"], folder / f"cold{i}", "cold"))
    warm = folder / "cold0"
    for _ in range(args.rounds):
        runs += [run("report", traces[name], warm, "warm") for name in ("tenth", "third", "whole")]
        runs += [run("pages", traces[name], warm, "warm") for name in ("tenth", "whole")]
        runs += [run(f"{rival}_groups", traces["whole"], warm, "-") for rival in ("duckdb", "polars")]
        runs += [run(f"{rival}_lifetimes", traces["tenth"], warm, "-") for rival in ("duckdb", "polars")]
    for task in ("rebuilt", "verified"):
        shutil.rmtree(folder / f"alone-{task}", ignore_errors=True)
        runs.append(run(task, STATE, folder / f"alone-{task}", "cold"))
    for name, task in (("changes", "rebuilt"), ("wide", "state"), ("wide", "verified")):
        runs += [run(task, traces[name], warm, "warm") for _ in range(args.rounds + 1)][1:]
    return {
        "machine": machine.describe(),
        "command": f"make bench-analyze EVENTS={args.events:g} ANALYZE_ROUNDS={args.rounds}",
        "note": args.note,
        "versions": {name: version(name) for name in PACKAGES} | {"Python": sys.version.split()[0]},
        "bytes": sum(path.stat().st_size for path in traces["whole"].glob("pages-*.parquet")),
        "runs": [asdict(one) for one in runs],
        "rounds": args.rounds,
        "events": rows,
    }


def markdown(found: dict[str, Any]) -> str:
    """The whole result."""
    host = found["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return (
        "\n\n".join(
            [
                "# How fast the analyzer answers",
                f"Written by `{found['command']}` on {host['date'][:10]}, commit {host['commit']}; not edited by hand.",
                f"{host['cpu']}, {host['n_cpus']} CPUs, {host['memory_gib']} GiB, hypervisor {host['hypervisor']}, Linux {host['kernel']}; {versions}.",
                "## Goals",
                _goals(found),
                "## Every measurement",
                _table(found),
                NOTES.format(
                    events=found["events"], bytes_per_event=found["bytes"] / found["events"], rounds=found["rounds"]
                ),
            ]
        )
        + "\n"
    )


NOTES = """\
* Each run is a process of its own; seconds are from its start to its end, imports and compiling included. Median of {rounds} runs (in
  brackets the extremes). Memory is what the process and its children held together at most, sampled 50 times a second.
* `whole` has {events:,} page events of a build, recorded on this machine and repeated (tests/bench/scaled_trace.py), at
  {bytes_per_event:.1f} bytes each, beside the map, the changes and the regions of sample_traces/7.2-churn; `third` and `tenth` have
  that part of them. `changes` has 1,000,000 changes of the direct map, `wide` a host of 4 TB with a tenth of its 2M frames split.
* cold: the cache of compiled code is empty. warm: it is full. Files are in the page cache in both.
* report: all of `directmap-analyze report` but the drawing. pages: `directmap-analyze pages`. verified: `verify`, which holds two
  maps of the host. state: the map at one moment.
* duckdb and polars read the same files. groups: number of events by event, order, gfp and migratetype. lifetimes: from each
  allocation to the next event of the same page frame if that is a free, which is right for single pages alone; `pages` does that for all
  orders, splits included, beside everything else."""


def _of(found: dict[str, Any], what: str, trace: str, cache: str) -> list[dict[str, Any]]:
    return [one for one in found["runs"] if (one["what"], one["trace"], one["cache"]) == (what, trace, cache)]


def _median(runs: Sequence[dict[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in runs)


def _goals(found: dict[str, Any]) -> str:
    cold, warm = (_of(found, "report", "whole", cache) for cache in ("cold", "warm"))
    tenth = _of(found, "report", "tenth", "warm")
    rebuilt = _of(found, "rebuilt", "changes", "warm")
    state, verified = (_of(found, what, "wide", "warm") for what in ("state", "verified"))
    slope = (_median(warm, "seconds") - _median(tenth, "seconds")) / (found["events"] * 0.9) * 1e9
    growth = _median(warm, "peak_bytes") / _median(tenth, "peak_bytes")
    n = f"{found['events'] / 1e6:g} M page events"
    rebuild = statistics.median(one["said"]["of_it_rebuild"] for one in rebuilt)
    rows = [
        (f"{n}, open to answer, compile time included: 10 s", f"{_median(cold, 'seconds'):.1f} s", _median(cold, "seconds") <= 10),
        ("and 2 GB", f"{_median(cold, 'peak_bytes') / 1e9:.2f} GB", _median(cold, "peak_bytes") <= 2e9),
        ("1 M changes rebuilt: 2 s", f"{rebuild:.2f} s", rebuild <= 2),
        ("state of a 4 TB host, a tenth split: 1 GB", f"{_median(state, 'peak_bytes') / 1e9:.2f} GB", _median(state, "peak_bytes") <= 1e9),
        ("and verified: 1 GB", f"{_median(verified, 'peak_bytes') / 1e9:.2f} GB", _median(verified, "peak_bytes") <= 1e9),
        ("cost linear in events", f"{slope:.0f} ns an event beyond the first tenth; warm {_median(warm, 'seconds'):.1f} s, a tenth of the events {_median(tenth, 'seconds'):.1f} s", None),
        ("memory flat", f"{growth:.2f} times that of a tenth of the events", growth <= 1.2),
    ]  # fmt: skip
    marks = {True: "yes", False: "**no**", None: ""}
    return "\n".join(
        [
            "| goal | measured | reached |",
            "| --- | --- | --- |",
            *(f"| {goal} | {got} | {marks[ok]} |" for goal, got, ok in rows),
        ]
    )


def _table(found: dict[str, Any]) -> str:
    lines = [
        "| what | trace | cache | seconds | CPU seconds | peak, MB | answer |",
        "| --- | --- | --- | ---: | ---: | ---: | --- |",
    ]
    for key in dict.fromkeys((one["what"], one["trace"], one["cache"]) for one in found["runs"]):
        runs = _of(found, *key)
        seconds = [one["seconds"] for one in runs]
        spread = f" ({min(seconds):.2f} to {max(seconds):.2f})" if len(runs) > 1 else ""
        said = ", ".join(
            f"{name} {n:,}" if isinstance(n, int) else f"{name} {n:.2f}"
            for name, n in runs[0]["said"].items()
            if isinstance(n, int | float)
        )
        lines.append(
            f"| {' | '.join(key)} | {_median(runs, 'seconds'):.2f}{spread} | {_median(runs, 'cpu_seconds'):.2f} | "
            f"{_median(runs, 'peak_bytes') / 1e6:,.0f} | {said} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.analyzer", description=__doc__)
    parser.add_argument("--events", type=float, default=100.0, help="millions of page events; default: %(default)g")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=60.0, help="to record; default: %(default)g")
    parser.add_argument("--source", type=Path, metavar="DIR", help="a recording with --pages all, instead of a new one")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="for the traces, which stay there")
    parser.add_argument("--note", default="", help="a sentence for the result: what else the machine did meanwhile")
    parser.add_argument("--only-make", action="store_true", help="the traces, in --folder, to be timed another time")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.md", help="Markdown here, JSON beside it")
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="directmap-bench-") as name:
            found = measure(args, args.folder or Path(name))
    except HostError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not found:
        return 0
    publish(found, markdown(found), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
