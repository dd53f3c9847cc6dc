"""Replay a trace under policies: decode once, let each policy place the pages, walk the map, sum up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES
from collect.trace import open_trace
from replay.caveats import caveats_of, provenance_of
from replay.engine import Walk, walk
from replay.placement import Placement
from replay.policies import POLICIES, Policy
from replay.results import Interval, PolicyResult, Series
from replay.stream import Stream, decode

__all__ = ["replay", "run_policies"]

Int64 = npt.NDArray[np.int64]


def run_policies(trace_dir: Path, names: Sequence[str] = ()) -> list[PolicyResult]:
    """Replay the trace in `trace_dir` under the named policies, all of them by default, in the order given.

    Raises TraceError for an unknown name and for a trace that cannot be read.
    """
    for name in names:
        if name not in POLICIES:
            raise TraceError(f"no policy is called {name[:60]!r}; choose from {', '.join(POLICIES)}")
    stream = decode(open_trace(trace_dir))
    return [replay(stream, POLICIES[name]) for name in dict.fromkeys(names or POLICIES)]


def replay(stream: Stream, policy: Policy) -> PolicyResult:
    """One policy on a decoded trace. Raises TraceError where the changes cannot be of one machine."""
    outcome = policy.place(stream.requests, stream.host)
    runs = [(placement, walk(stream, placement)) for placement in outcome.placements]
    caveats, narrow = caveats_of(stream)

    def span(bounds: Callable[[Placement, Walk], tuple[float, float] | float]) -> Interval:
        values = [bounds(placement, done) for placement, done in runs]
        pairs = [value if isinstance(value, tuple) else (value, value) for value in values]
        return Interval(min(lo for lo, _ in pairs), max(hi for _, hi in pairs))

    idle = [_idle(placement, stream.grid_ns) for placement, _ in runs]
    first = runs[0][0]
    return PolicyResult(
        policy=policy.name,
        title=policy.title,
        identity=outcome.identity,
        split_2m=span(lambda _, w: w.split_2m),
        split_2m_live_end=span(lambda _, w: w.live_end),
        split_2m_live_peak=span(lambda _, w: w.live_peak),
        split_1g=span(lambda _, w: w.split_1g),
        leaf_entries_start=_exactly(sum(stream.rebuilt.start.map.counts().values())),
        leaf_entries_end=span(lambda _, w: _leaf_entries(w)),
        cpa_calls=span(lambda p, _: _calls(stream, p)),
        cpa_steps=span(lambda _, w: w.n_steps),
        tlb_flushes_split=span(lambda _, w: _split_flushes(w)),
        tlb_flushes_call=span(lambda p, _: _call_flushes(stream, p)),
        tlb_flushes_ranged=span(lambda p, _: _ranged_flushes(stream, p)),
        idle_pages_mean=_spanned([_mean(p, stream.grid_ns) for p, _ in runs]),
        idle_pages_peak=_spanned([float(p.idle_pages.max(initial=0)) for p, _ in runs]),
        idle_pages_end=_spanned([float(curve[-1]) for curve in idle]),
        pages_unmapped=span(lambda p, _: p.pages_unmapped),
        refills={
            int(order): _exactly(int(n))
            for order, n in reversed(list(zip(*np.unique(first.refill_orders, return_counts=True), strict=True)))
        },
        refill_failures=span(lambda p, _: p.refill_failures),
        requests={
            "total": len(stream.requests),
            "served": first.served,
            "not_served": first.not_served,
            "as_recorded": first.as_recorded,
        },
        requests_by_user=stream.requests.by_user(),
        series=_series(stream.grid_ns, [w.curves for _, w in runs], idle),
        caveats=outcome.caveats + caveats,
        narrow=outcome.narrow + narrow,
        emulated=bool(stream.trace.manifest["cpu"].get("emulated")),
        parameters=dict(policy.parameters),
        provenance=provenance_of(stream),
    )


def _exactly(value: float) -> Interval:
    return Interval(value, value)


def _spanned(values: Sequence[float]) -> Interval:
    return Interval(min(values), max(values))


def _leaf_entries(done: Walk) -> tuple[int, int]:
    """Leaves of the real frames, and 511 more for each large entry that blocks have split on top."""
    base = sum(done.map.counts().values())
    more = HUGE_FRAME_PAGES - 1
    lo, hi = (frames - done.n_split_real for frames in done.split_2m)
    return base + more * lo, base + more * (hi + done.split_1g[1] - done.split_1g[0])


def _split_flushes(done: Walk) -> tuple[int, int]:
    """One for each split, also for a frame that is split a second time after it was put back."""
    again = done.n_split_again
    return done.split_2m[0] + done.split_1g[0] + again, done.split_2m[1] + done.split_1g[1] + again


def _calls(stream: Stream, placement: Placement) -> int:
    """Recorded primary calls that still happen, and the policy's own."""
    return int(np.count_nonzero(_still(stream, placement))) + int(placement.acts.n_calls.sum())


def _call_flushes(stream: Stream, placement: Placement) -> int:
    kept = _still(stream, placement) & stream.calls.flushes
    return int(np.count_nonzero(kept)) + int(placement.acts.n_call_flushes.sum())


def _ranged_flushes(stream: Stream, placement: Placement) -> int:
    return int(stream.calls.ranged[~placement.swallowed].sum()) + int(placement.acts.n_range_flushes.sum())


def _still(stream: Stream, placement: Placement) -> npt.NDArray[np.bool_]:
    """Per call, whether it happens under the placement: those of swallowed requests do not."""
    return ~np.append(placement.swallowed, False)[stream.calls.request]


def _idle(placement: Placement, grid_ns: Int64) -> Int64:
    """Idle pages at each moment of the grid."""
    at = np.searchsorted(placement.idle_ns, grid_ns, side="right")
    return np.concatenate(([0], placement.idle_pages))[at].astype(np.int64)


def _mean(placement: Placement, grid_ns: Int64) -> float:
    """Idle pages on average over the recording, each count weighted by how long it held."""
    start, end = int(grid_ns[0]), int(grid_ns[-1])
    edges = np.concatenate(([start], np.clip(placement.idle_ns, start, end), [end]))
    return float((np.concatenate(([0], placement.idle_pages)) * np.diff(edges)).sum() / (end - start))


def _series(grid_ns: Int64, curves: Sequence[Int64], idle: Sequence[Int64]) -> Series:
    split_lo, _, live_lo, _ = np.min(curves, axis=0).astype(np.float64)
    _, split_hi, _, live_hi = np.max(curves, axis=0).astype(np.float64)
    return Series(
        t_s=(grid_ns - grid_ns[0]) / 1e9,
        split_lo=split_lo,
        split_hi=split_hi,
        live_lo=live_lo,
        live_hi=live_hi,
        idle_lo=np.min(idle, axis=0).astype(np.float64),
        idle_hi=np.max(idle, axis=0).astype(np.float64),
    )
