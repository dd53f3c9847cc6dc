"""What it costs to ask for the map at moments of a long trace: `python -m tests.bench.seeks [--changes N] [--trace DIR]`.

The changes of a real recording are repeated one after the other until there are N, in a copy that is thrown away. What is
timed: reading them, playing all of them, the first question (which leaves the checkpoints), and questions in random
order after it. A few answers are held against a playback from START.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from analyze.course import load_course
from analyze.history import History
from analyze.playback import Playback
from collect.schema import TABLES, Moment
from collect.trace import open_trace
from tests.machine.rewrite import rewrite, with_manifest

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"
N_SEEKS, N_CHECKED = 100, 5


def repeated(source: Path, target: Path, n_changes: int) -> Path:
    """A trace whose changes are those of `source`, over and over; without END, which no longer holds."""
    trace = open_trace(source)
    table = trace.table("changes")
    times = -(-n_changes // len(table))
    period = int(trace.manifest["ts_end_ns"] - trace.manifest["ts_start_ns"])
    id_step = np.uint64(int(table["call_id"].to_numpy().max()) + 1)
    turn = np.repeat(np.arange(times, dtype=np.uint64), len(table))
    parts = pa.concat_tables([table] * times).combine_chunks()
    for name in ("ts_ns", "call_id", "parent_id"):
        values = parts[name].to_numpy()
        step = np.uint64(period) if name == "ts_ns" else id_step
        moved = np.where((name == "parent_id") & (values == 0), values, values + turn * step)
        at = parts.column_names.index(name)
        parts = parts.set_column(at, TABLES["changes"].field(at), pa.array(moved))
    rewrite(source, target, "changes", parts.slice(0, n_changes))
    snapshots = trace.table("snapshots")
    rewrite(target, target, "snapshots", snapshots.filter(pa.array(snapshots["moment"].to_numpy() != Moment.END)))
    return with_manifest(target, target, ts_end_ns=int(trace.manifest["ts_start_ns"]) + period * times)


def timed(what: str, begin: float, more: str = "") -> float:
    took = time.perf_counter() - begin
    print(f"{what:<48}{took * 1000:>12,.1f} ms{more}")
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=1_000_000)
    parser.add_argument("--trace", type=Path, default=SAMPLE)
    options = parser.parse_args()
    warm = History(load_course(open_trace(SAMPLE)))  # compiled code is loaded
    warm.state_at(warm.span.last_ns).runs()
    with tempfile.TemporaryDirectory() as scratch:
        trace = open_trace(repeated(options.trace, Path(scratch) / "trace", options.changes))
        begin = time.perf_counter()
        course = load_course(trace)
        timed(f"read {len(course.changes):,} changes", begin)
    begin = time.perf_counter()
    Playback(course).to_end()
    whole = timed("play all of them", begin)
    history = History(course)
    begin = time.perf_counter()
    history.state_at(history.span.last_ns)
    n, n_bytes = len(history._checkpoints), sum(checkpoint.n_bytes for checkpoint in history._checkpoints)
    timed("first question: the end", begin, f"   {n} checkpoints, {n_bytes / 1e6:.1f} MB")
    moments = np.random.default_rng(1).integers(history.span.first_ns, history.span.last_ns, N_SEEKS).tolist()
    took = []
    for ts_ns in moments:
        begin = time.perf_counter()
        history.state_at(ts_ns)
        took.append(time.perf_counter() - begin)
    print(
        f"{N_SEEKS} questions at random moments: median {np.median(took) * 1000:.2f} ms, slowest {max(took) * 1000:.2f} ms, "
        f"{100 * np.median(took) / whole:.1f} % of playing all"
    )
    for ts_ns in sorted(moments[:N_CHECKED]):
        straight = Playback(course)
        straight.to(ts_ns)
        for mine, theirs in zip(history.state_at(ts_ns).runs(), straight.state.runs(), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    print(f"{N_CHECKED} of the answers are those of a playback from START")
    print(f"most memory at once: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10:,} MB, libraries included")


if __name__ == "__main__":
    main()
