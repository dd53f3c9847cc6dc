"""How fast the replay is: `python3 -m tests.bench.replayer` (`make bench-replay`), beside libCacheSim on the same requests.

A recording is decoded, and its stream repeated, request by request and change by change, until it has as many events as
asked for. What counts are events that a policy acts on: requests that it serves and their frees, a page a request (an area of
n pages is n requests of order 0 to a page allocator), and changes that reach the page tables of its map. What a policy
leaves out (requests that stay as recorded, changes that do not happen under it) is not counted. Times are of one thread, the
median of the rounds, compiled code at hand, by the clock and by the CPU's (which others on the machine disturb less); decoding and policies are timed apart, and once together on the recording as
it is.

libCacheSim (https://github.com/1a1a11a/libCacheSim, from PyPI: `pip install libcachesim`; not needed otherwise) runs FIFO and
LRU in its own C loop over a file of the same stream: a request for the page at each page that is allocated, freed
or changed, a cache of half the pages that occur.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from collect.errors import HostError, TraceError
from collect.trace import open_trace
from replay.engine import walk
from replay.placement import Served
from replay.policies import Policy
from replay.policies.choose import choose
from replay.requests import NEVER, Requests
from replay.run import run_policies
from replay.serving import serve
from replay.steps import Steps
from replay.stream import Stream, decode
from tests.bench import machine
from tests.bench.markdown import publish
from tests.bench.replayer_page import markdown

TEN = (
    "none", "prog-pack:old-pack=no", "rox-cache:old-block=no", "gfp-unmapped", "gfp-unmapped:variant=ideal", "migrate-unmapped", "grouped",
    "pageblock-flip", "secretmem-pool", "none+merge",
)  # fmt: skip
OTHERS = ("FIFO", "LRU")

Int64 = npt.NDArray[np.int64]


def repeated(stream: Stream, n_events: int) -> Stream:
    """The stream's requests that are freed in it, and their changes, again and again until there are `n_events` or more.

    Changes of what nobody asked for are left out: they would find the map as the last round left it.
    """
    requests, steps = stream.requests, stream.steps
    freed = requests.end_ns != NEVER
    owner = requests.owner
    owned = steps.page_owned[steps.page_first[:-1].clip(0, max(len(steps.page_owned) - 1, 0))]
    has_page = np.diff(steps.page_first) > 0
    keep = has_page & (owned >= 0)
    keep[keep] = freed[owner[owned[keep]]]
    cell = np.repeat(keep, np.diff(steps.page_first))
    new_page = np.cumsum(freed[owner]) - 1
    pages = np.where(steps.page_owned[cell] >= 0, new_page[steps.page_owned[cell]], -1)
    requests = requests.select(freed)
    once = 2 * len(requests) + int(np.count_nonzero(keep))
    rounds = max(1, -(-n_events // max(1, once)))
    span = (
        int(max(requests.end_ns.max(initial=0), steps.exit_ns.max(initial=0)) - requests.begin_ns.min(initial=0)) + 10
    )
    grid = np.linspace(stream.grid_ns[0], stream.grid_ns[0] + span * rounds, len(stream.grid_ns)).astype(np.int64)
    window = type(stream.window)(
        *(np.full(len(edge), fill) for edge, fill in zip(stream.window, (0, NEVER), strict=True))
    )
    return replace(
        stream,
        requests=_requests(requests, rounds, span),
        steps=_steps(steps, keep, pages, rounds, span, len(requests.pfn)),
        grid_ns=grid,
        window=window,
    )


def _times(column: npt.NDArray[Any], rounds: int, step: int = 0) -> npt.NDArray[Any]:
    """A column `rounds` times over, `step` more in each."""
    return (column[None, :] + (np.arange(rounds, dtype=np.int64) * step)[:, None].astype(column.dtype)).reshape(-1)


def _requests(requests: Requests, rounds: int, span: int) -> Requests:
    shifted = ("alloc_ns", "free_ns", "begin_ns", "end_ns")
    columns = {
        name: np.tile(getattr(requests, name), rounds)
        for name in ("region_id", "kind", "asked_kind", "asked_bytes", "in_jit", "user", "order", "alloc_pid", "free_pid",
                     "address", "life", "pfn", "text", "reset")
    }  # fmt: skip
    columns |= {name: _times(getattr(requests, name), rounds, span) for name in shifted}
    first = np.concatenate(([0], np.cumsum(np.tile(requests.n_pages, rounds)))).astype(np.int64)
    return replace(requests, first=first, **columns)


def _steps(steps: Steps, keep: npt.NDArray[np.bool_], pages: Int64, rounds: int, span: int, n_pages: int) -> Steps:
    times = ("entry_ns", "exit_ns")
    columns = {
        name: np.tile(getattr(steps, name)[keep], rounds)
        for name in Steps.__dataclass_fields__
        if name not in (*times, "page_first", "page_owned")
    }
    columns |= {name: _times(getattr(steps, name)[keep], rounds, span) for name in times}
    counts = np.tile(np.diff(steps.page_first)[keep], rounds)
    owned = _times(pages, rounds, n_pages)
    owned[np.tile(pages < 0, rounds)] = -1
    first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    return replace(steps, page_first=first, page_owned=owned, **columns)


def timed(what: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that it took, and what it gave."""
    began = time.perf_counter()
    result = what()
    return time.perf_counter() - began, result


def one_policy(stream: Stream, policy: Policy, rounds: int) -> dict[str, Any]:
    """Median seconds of placing and of walking (every way it may have gone), and events that it acted on."""
    placing, walking, cpu = [], [], []
    acted = 0
    for _ in range(rounds):
        before = time.process_time()
        seconds, outcome = timed(lambda: serve(policy, stream.requests, stream.host))
        placing.append(seconds)
        seconds, walks = timed(
            lambda outcome=outcome: [  # type: ignore[misc]
                walk(stream, placement, merge_ignoring=policy.merge_ignoring) for placement in outcome.placements
            ]
        )
        walking.append(seconds)
        cpu.append(time.process_time() - before)
        pages = stream.requests.n_pages
        acted = sum(
            2 * int(pages[placement.state == Served.SERVED].sum()) + done.n_steps
            for placement, done in zip(outcome.placements, walks, strict=True)
        )
    total = statistics.median(a + b for a, b in zip(placing, walking, strict=True))
    return {
        "ways": len(outcome.placements),
        "acted_on": acted,
        "placing_s": round(statistics.median(placing), 4),
        "walking_s": round(statistics.median(walking), 4),
        "events_per_s": round(acted / total),
        "events_per_cpu_s": round(acted / statistics.median(cpu)),
    }


def page_stream(stream: Stream) -> Int64:
    """Page frames in order of time: of each page allocated, freed, and changed."""
    requests, steps = stream.requests, stream.steps
    owner = requests.owner
    step = np.repeat(np.arange(len(steps)), np.diff(steps.page_first))
    pfn = np.concatenate((requests.pfn, requests.pfn, requests.pfn[steps.page_owned]))
    ns = np.concatenate((requests.begin_ns[owner], requests.end_ns[owner], steps.exit_ns[step]))
    return pfn[np.argsort(ns, kind="stable")]


def other_simulator(pages: Int64, rounds: int) -> dict[str, Any]:
    """libCacheSim's requests a second in its own loop. Raises HostError where it is not installed."""
    try:
        import libcachesim
    except ImportError:
        raise HostError("libcachesim is not installed, so nothing runs beside; pip install libcachesim") from None
    n = len(pages)
    ids, size = pages.astype(np.uint64), max(1, len(np.unique(pages)) // 2)
    row = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])  # its oracleGeneral format
    table = np.zeros(n, row)
    table["id"], table["size"], table["next"] = ids, 1, -1
    found: dict[str, Any] = {"version": libcachesim.__version__, "requests": n, "cache_pages": size}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "stream.oracleGeneral"
        table.tofile(file)
        for name in OTHERS:
            seconds, cpu = [], []
            for _ in range(rounds):
                before = time.process_time()
                reader = libcachesim.TraceReader(str(file), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
                cache = getattr(libcachesim, name)(cache_size=size)
                took, (miss, _) = timed(lambda cache=cache, reader=reader: cache.process_trace(reader))  # type: ignore[misc]
                seconds.append(took)
                cpu.append(time.process_time() - before)
            found[name] = {
                "requests_per_s": round(n / statistics.median(seconds)),
                "requests_per_cpu_s": round(n / statistics.median(cpu)),
                "miss_ratio": round(float(miss), 4),
            }
    return found


def ten_together(trace: Path, rounds: int) -> dict[str, Any]:
    """Decoding a recording, one policy on it, and all ten: the last is to be within three times the first and one more."""
    seconds: dict[str, list[float]] = {"decoding": [], "with_one": [], "with_ten": []}
    for _ in range(rounds):
        seconds["decoding"].append(timed(lambda: decode(open_trace(trace)))[0])
        seconds["with_one"].append(timed(lambda: run_policies(trace, TEN[:1]))[0])
        seconds["with_ten"].append(timed(lambda: run_policies(trace, TEN))[0])
    found: dict[str, Any] = {f"{name}_s": round(statistics.median(values), 4) for name, values in seconds.items()}
    return found | {"allowed_s": round(3 * found["decoding_s"] + found["with_one_s"] - found["decoding_s"], 4)}


TRACE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"
ROUNDS = 3


def _command(trace: Path, n_events: int, rounds: int) -> str:
    """What to type to measure the same again."""
    if (trace.resolve(), rounds) == (TRACE, ROUNDS):
        return f"make bench-replay REPLAY_EVENTS={n_events}"
    return f"python -m tests.bench.replayer --trace {trace.name} --events {n_events} --rounds {rounds}"


def measure(trace: Path, n_events: int, rounds: int) -> dict[str, Any]:
    """Everything, warmed up first."""
    small = decode(open_trace(trace))
    for policy in choose(TEN):
        one_policy(small, policy, 1)  # compile, or load what was compiled
    large = repeated(small, n_events)
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "command": _command(trace, n_events, rounds),
        "versions": f"numba {version('numba')}, numpy {version('numpy')}, Python {sys.version.split()[0]}",
        "rounds": rounds,
        "others": list(OTHERS),
        "trace": trace.name,
        "requests": len(large.requests),
        "changes": len(large.steps),
        "policies": {policy.label: one_policy(large, policy, rounds) for policy in choose(TEN)},
        "ten_together": ten_together(trace, rounds),
    }
    try:
        result["libcachesim"] = other_simulator(page_stream(large), rounds)
    except HostError as error:
        print(f"bench: {error}", file=sys.stderr)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.replayer", description=__doc__)
    parser.add_argument("--trace", type=Path, default=TRACE, help="default: %(default)s")
    parser.add_argument("--events", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="write it there too, and as JSON beside it")
    args = parser.parse_args(argv)
    try:
        result = measure(args.trace, args.events, args.rounds)
    except (TraceError, HostError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    publish(result, markdown(result), args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
