"""Replay a trace under policies: decode once, let each policy place the pages, walk the map, sum up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from analyze.directmap import GIGA, DirectMap
from analyze.reconstruct import Rebuild
from analyze.users import USER_NAMES, User
from collect.schema import HUGE_FRAME_PAGES, Level
from collect.trace import open_trace
from replay.caveats import caveats_of, provenance_of
from replay.engine import Walk, walk
from replay.placement import Placement, Served
from replay.policies import Policy
from replay.policies.choose import choose
from replay.pressure import Pressure
from replay.progress import Progress
from replay.requests import Life
from replay.results import Interval, PolicyResult, Series
from replay.serving import parse_users, serve
from replay.stream import Stream, as_asked, decode

__all__ = ["replay", "run_chosen", "run_policies"]

Int64 = npt.NDArray[np.int64]

_SPLITTERS = (*USER_NAMES, "nobody's request")
"""Who may split a frame first, by the codes of `replay.placement.NOBODY` and `User`."""


def run_policies(
    trace_dir: Path,
    names: Sequence[str] = (),
    *,
    settings: Sequence[str] = (),
    users: str | None = None,
    pressure: str | None = None,
    progress: Progress | None = None,
    rebuilt: Rebuild | None = None,
) -> list[PolicyResult]:
    """Replay the trace in `trace_dir` under the named policies, all of them by default, in the order given.

    Args:
        names, settings: see `replay.policies.choose`.
        users, pressure, progress, rebuilt: see `run_chosen`.
    Raises TraceError for what does not exist and for a trace that cannot be read, HostError for a broken policy package.
    """
    chosen = choose(names, settings)
    return run_chosen(trace_dir, chosen, users=users, pressure=pressure, progress=progress, rebuilt=rebuilt)


def run_chosen(
    trace_dir: Path,
    policies: Sequence[Policy],
    *,
    users: str | None = None,
    pressure: str | None = None,
    progress: Progress | None = None,
    rebuilt: Rebuild | None = None,
) -> list[PolicyResult]:
    """Decode the trace in `trace_dir` once, and replay it under each of `policies`.

    Args:
        users: whose requests a policy serves, as `replay.serving.parse_users` takes it; the others stay as recorded.
        pressure: when memory is short, as `replay.pressure.Pressure.parse` takes it.
        progress: is told of each replay that is done.
        rebuilt: of the same trace, where somebody rebuilt it already.
    Raises TraceError for what does not exist and for a trace that cannot be read.
    """
    who = parse_users(users)
    views = {False: decode(open_trace(trace_dir), Pressure.parse(pressure) if pressure is not None else None, rebuilt)}
    if any(policy.as_asked for policy in policies):
        views[True] = as_asked(views[False])
    results = []
    for policy in policies:
        results.append(replay(views[policy.as_asked], policy, who))
        if progress is not None:
            progress.done(policy.label)
    return results


def replay(stream: Stream, policy: Policy, users: frozenset[User] | None = None) -> PolicyResult:
    """One policy on a decoded trace. Raises TraceError where the changes cannot be of one machine."""
    outcome = serve(policy, stream.requests, stream.host, users)
    runs = [
        (placement, walk(stream, placement, merge_ignoring=policy.merge_ignoring)) for placement in outcome.placements
    ]
    caveats, narrow = caveats_of(stream)
    start = stream.rebuilt.start.map

    def span(bounds: Callable[[Placement, Walk], tuple[float, float] | float]) -> Interval:
        values = [bounds(placement, done) for placement, done in runs]
        pairs = [value if isinstance(value, tuple) else (value, value) for value in values]
        return _interval(pairs, outcome.expected)

    idle = [_idle(placement, stream.grid_ns) for placement, _ in runs]
    first = runs[0][0]
    real = stream.requests.life != Life.CACHE  # a cache that is not there is no request
    return PolicyResult(
        policy=policy.label,
        title=policy.title,
        identity=outcome.identity,
        split_2m=span(lambda _, w: w.split_2m),
        split_2m_live_end=span(lambda _, w: w.live_end),
        split_2m_live_peak=span(lambda _, w: w.live_peak),
        split_2m_by_user={
            name: both
            for code, name in enumerate(_SPLITTERS)
            if (both := span(lambda _, w, code=code: _by_user(w, code))).hi  # type: ignore[misc]
        },
        split_frame_seconds=_spanned_over(
            [_frame_seconds(w.curves, stream.grid_ns) for _, w in runs],
            merges=policy.merge_ignoring is not None or bool(stream.n_put_back),
        ),
        split_1g=span(lambda _, w: w.split_1g),
        merges=span(lambda _, w: w.merges),
        leaf_entries_start=_exactly(sum(start.counts().values())),
        leaf_entries_end=span(lambda _, w: _leaf_entries(w)),
        page_table_pages_start=_exactly(_tables(start)),
        page_table_pages_end=span(lambda _, w: _table_pages(w)),
        cpa_calls=span(lambda p, _: _calls(stream, p)),
        cpa_steps=span(lambda _, w: w.n_steps),
        tlb_flushes_split=span(lambda _, w: w.splits),
        tlb_flushes_call=span(lambda p, _: _call_flushes(stream, p)),
        tlb_flushes_ranged=span(lambda p, _: _ranged_flushes(stream, p)),
        idle_pages_mean=span(lambda p, _: _mean(p, stream.grid_ns)),
        idle_pages_peak=span(lambda p, _: float(p.idle_pages.max(initial=0))),
        idle_pages_end=_interval([(float(curve[-1]),) * 2 for curve in idle], outcome.expected),
        pages_unmapped=span(lambda p, _: p.pages_unmapped),
        pages_released=span(lambda p, _: p.pages_released),
        refills={
            order: span(lambda p, _, order=order: int(np.count_nonzero(p.refill_orders == order)))  # type: ignore[misc]
            for order in sorted({int(order) for p, _ in runs for order in p.refill_orders}, reverse=True)
        },
        refill_failures=span(lambda p, _: p.refill_failures),
        requests={
            "total": int(np.count_nonzero(real)),
            "served": first.served,
            "not_served": first.not_served,
            "as_recorded": int(np.count_nonzero(real & (first.state == Served.AS_RECORDED))),
        },
        requests_not_served=span(lambda p, _: p.not_served),
        requests_by_user=stream.requests.by_user(),
        served_by_user=stream.requests.by_user(first.state == Served.SERVED),
        not_served_by_user=stream.requests.by_user(first.state == Served.NOT_SERVED),
        series=_series(stream.grid_ns, [done for _, done in runs], idle),
        caveats=outcome.caveats + caveats,
        narrow=outcome.narrow + narrow,
        emulated=bool(stream.trace.manifest["cpu"].get("emulated")),
        as_asked=policy.as_asked,
        parameters={name: str(value) for name, value in policy.settings.items()},
        provenance=provenance_of(stream),
    )


def _exactly(value: float) -> Interval:
    return Interval(value, value)


def _interval(pairs: Sequence[tuple[float, float]], expected: int | None) -> Interval:
    """Of the bounds of each placement; the lower one of the expected placement is what is expected (see `Outcome`)."""
    likeliest = None if expected is None else pairs[expected][0]
    return Interval(min(lo for lo, _ in pairs), max(hi for _, hi in pairs), likeliest)


def _frame_seconds(curves: Int64, grid_ns: Int64) -> tuple[float, float]:
    """Split frames times seconds. Frames ever split only grow in number, so between two moments there are no fewer than at the
    first, at least, and no more than at the second, at most.
    """
    seconds = np.diff(grid_ns) / 1e9
    least = np.maximum.accumulate(curves[0])[:-1]
    most = np.minimum.accumulate(curves[1][::-1])[::-1][1:]
    return float((least * seconds).sum()), float((most * seconds).sum())


def _spanned_over(pairs: Sequence[tuple[float, float]], *, merges: bool) -> Interval:
    return Interval(0.0 if merges else min(lo for lo, _ in pairs), max(hi for _, hi in pairs))


def _leaf_entries(done: Walk) -> tuple[int, int]:
    """Leaves of the real frames, and 511 more for each large entry that blocks have split on top."""
    base = sum(done.map.counts().values())
    more = HUGE_FRAME_PAGES - 1
    lo, hi = done.split_end
    return base + more * lo, base + more * (hi + done.split_1g[1] - done.split_1g[0])


def _by_user(done: Walk, code: int) -> tuple[int, int]:
    """Distinct 2M frames that a user's changes split first."""
    surely, perhaps = (int(n) for n in done.by_user[:, code])
    return surely, surely + perhaps


def _tables(m: DirectMap) -> int:
    """Page-table pages below the level of 1G entries: one a split 1G range, one a split 2M frame."""
    return int(np.count_nonzero(m.entries.giga_level[: m.first_symbolic // GIGA] == Level.M2)) + len(m.split_frames())


def _table_pages(done: Walk) -> tuple[int, int]:
    base = _tables(done.map)
    lo, hi = done.split_end
    return base + lo, base + hi + done.split_1g[1] - done.split_1g[0]


def _calls(stream: Stream, placement: Placement) -> int:
    """Recorded primary calls that still happen, and the policy's own."""
    kept = int(np.count_nonzero(_still(stream, placement))) - placement.n_calls_saved
    return kept + int(placement.acts.n_calls.sum())


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


def _series(grid_ns: Int64, runs: Sequence[Walk], idle: Sequence[Int64]) -> Series:
    curves = [done.curves for done in runs]
    by_user = [done.by_user_curves for done in runs]
    least = np.min([surely for surely, _ in by_user], axis=0).astype(np.float64)
    most = np.max([both.sum(axis=0) for both in by_user], axis=0).astype(np.float64)
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
        by_user={name: (least[code], most[code]) for code, name in enumerate(_SPLITTERS) if most[code].any()},
    )
