"""From runs to figures: each contestant under each load, against the untraced run of the same round; memory; goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.contestants import OURS_ALL, OURS_DEFAULT, UNTRACED
from tests.bench.costs import EVENTS_PER_PAGE, Spread, cost_per_event_ns, growth, slope_per_minute, spread
from tests.bench.loads import BUILD, POPULATE, POPULATE_ALL_CPUS
from tests.bench.rounds import Run
from tests.bench.watch import Watch

__all__ = ["figures", "goals", "memory"]

Figures = dict[str, dict[str, dict[str, Any]]]

MOST_GROWTH = 0.05
"""Memory is called flat if it grew no more than this from the middle third of the recording to the last."""
MB = 1_000_000


def figures(runs: Sequence[Run], processes: dict[str, int]) -> Figures:
    """Load, contestant, figure. `processes`: how many each load runs at once."""
    found: Figures = {}
    for load in dict.fromkeys(run.load for run in runs):
        here = [run for run in runs if run.load == load]
        bare = {run.round: run for run in here if run.contestant == UNTRACED}
        # In the first round untraced came second at the earliest; in a table it comes first.
        for name in dict.fromkeys([UNTRACED, *(run.contestant for run in sorted(here, key=lambda run: run.round))]):
            pairs = [(run, bare[run.round]) for run in here if run.contestant == name and run.round in bare]
            if pairs:
                found.setdefault(load, {})[name] = _figures(pairs, processes[load])
    return found


def _figures(pairs: Sequence[tuple[Run, Run]], processes: int) -> dict[str, Any]:
    """Figures of one contestant; `pairs` are its run and the untraced one, by round."""

    def over(figure: Callable[[Run, Run], float]) -> dict[str, Any]:
        return asdict(spread([figure(run, bare) for run, bare in pairs]))

    runs = [run for run, _ in pairs]
    events = sum(run.recorded.events for run in runs)
    made: dict[str, Any] = {
        "others_share": max(run.others_share for run in runs),
        "seconds": over(lambda run, _: run.seconds),
        "slowdown": over(lambda run, bare: run.seconds_per_unit / bare.seconds_per_unit - 1),
        "cpu_slowdown": over(lambda run, bare: run.cpu_seconds_per_unit / bare.cpu_seconds_per_unit - 1),
        "events": events,
        "lost": sum(run.recorded.lost for run in runs),
        "lossless_runs": sum(not run.recorded.lost for run in runs),
        "losses": _sums(run.recorded.losses for run in runs),
    }
    if runs[0].pages:
        made["pages_per_second"] = over(lambda run, _: run.pages / run.seconds)
        made["cost_ns"] = over(
            lambda run, bare: cost_per_event_ns(
                1 / run.seconds_per_unit, 1 / bare.seconds_per_unit, processes=processes
            )
        )
        made["cpu_cost_ns"] = over(
            lambda run, bare: (run.cpu_seconds_per_unit - bare.cpu_seconds_per_unit) / EVENTS_PER_PAGE * 1e9
        )
    if runs[0].contestant == UNTRACED:
        return made
    made["attach_cpu_seconds"] = over(lambda run, _: run.attach_cpu_seconds)
    made["tracer_cpu_seconds"] = over(lambda run, _: run.tracer_cpu_seconds)
    offered = events + made["lost"]
    if offered:
        made["events_per_second"] = over(lambda run, _: run.recorded.events / run.seconds)
    if events > 1000:  # not the odd few of a scoped recording, in which a file's footer is all there is
        made["bytes_per_event"] = sum(run.recorded.n_bytes for run in runs) / events
        made["tracer_cpu_seconds_per_million"] = over(lambda run, _: run.tracer_cpu_seconds / run.recorded.events * 1e6)
    checked = [run for run in runs if run.recorded.load_allocated is not None and run.pages]
    if checked:
        made["load_pages"] = sum(run.pages for run in checked)
        made["load_pages_allocated"] = sum(run.recorded.load_allocated or 0 for run in checked)
        made["load_pages_missing"] = sum(max(0, run.pages - (run.recorded.load_allocated or 0)) for run in checked)
        made["load_pages_freed"] = sum(run.recorded.load_freed or 0 for run in checked)
    return made


def _sums(parts: Any) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, n in part.items():
            total[name] = total.get(name, 0) + n
    return total


def memory(run: Run, watch: Watch) -> dict[str, Any]:
    """Memory of our recorder in one long recording at full rate. Bytes; the rings are told apart from all the rest."""
    samples = watch.memory
    begin = samples[0].ts
    own, rings = [sample.own for sample in samples], max(sample.rings for sample in samples)
    seconds = [sample.ts - begin for sample in samples]
    late = len(samples) // 3
    return {
        "seconds": run.seconds,
        "events_per_second": run.recorded.events / run.seconds,
        "lost": run.recorded.lost,
        "bytes_per_event": run.recorded.n_bytes / max(1, run.recorded.events),
        "samples": len(samples),
        "first": own[0],
        "last": own[-1],
        "largest": max(own),
        "largest_anon": max(sample.anon for sample in samples),
        "largest_file": max(sample.file - sample.rings for sample in samples),
        "peak_between_samples": max(0, watch.peak - rings),
        "rings": rings,
        "attach_peak": watch.attach_peak,
        "growth": growth(own),
        "slope_per_minute": slope_per_minute(seconds[late:], own[late:]),
    }


def goals(found: Figures, kept: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Each goal: what it asks, what was measured, whether it is reached (None: not measured)."""
    listed = [_rate(found, load) for load in (POPULATE, POPULATE_ALL_CPUS)]
    listed.append(_build(found))
    listed += [_peer(found, peer, part) for peer, part in (("perf", 0.5), ("bpftrace", 0.1))]
    listed.append(_complete(found))
    size = _get(found, POPULATE, OURS_ALL, "bytes_per_event")
    listed.append(_goal("at most 10 bytes a page event on disk", size and f"{size:.2f} bytes", size and size <= 10))
    if kept is None:
        listed += [_goal("recorder under 200 MB after attaching", None, None), _goal("and flat over time", None, None)]
    else:
        most = max(kept["largest"], kept["peak_between_samples"]) / MB
        listed.append(
            _goal(
                "recorder under 200 MB after attaching",
                f"{most:.0f} MB, and {kept['rings'] / MB:.0f} MB of rings",
                most < 200,
            )
        )
        text = f"{kept['growth']:+.1%} from the middle to the last third of {kept['seconds']:.0f} s"
        listed.append(_goal("and flat over time", text, kept["growth"] <= MOST_GROWTH))
    return listed


def _rate(found: Figures, load: str) -> dict[str, Any]:
    name = f"1 M page events/s and none lost, {load}"
    ours = found.get(load, {}).get(OURS_ALL)
    if not ours or "events_per_second" not in ours:
        return _goal(name, None, None)
    rate = ours["events_per_second"]["median"]
    rounds = ours["events_per_second"]["rounds"]
    text = f"{rate / 1e6:.2f} M/s, {ours['lost']:,} of {ours['events'] + ours['lost']:,} lost"
    text += f", none in {ours['lossless_runs']} of {rounds} runs"
    return _goal(name, text, rate >= 1e6 and not ours["lost"])


def _complete(found: Figures) -> dict[str, Any]:
    """Allocations only: a page in a batch of the LRU (mm/swap.c, cpu_fbatches) may be freed by who comes next."""
    name = "every page that the load touched stands in the trace, as allocated by its process"
    checked = [
        ours for load in found.values() for who, ours in load.items() if who == OURS_ALL and "load_pages" in ours
    ]
    if not checked:
        return _goal(name, None, None)
    missing = sum(ours["load_pages_missing"] for ours in checked)
    return _goal(name, f"{missing:,} of {sum(ours['load_pages'] for ours in checked):,} missing", not missing)


def _build(found: Figures) -> dict[str, Any]:
    name = "a build slowed by at most 1.2 % at default settings"
    ours = found.get(BUILD, {}).get(OURS_DEFAULT)
    if not ours:
        return _goal(name, None, None)
    slow = Spread(**ours["slowdown"])
    text = (
        f"{slow.median:+.2%} ({slow.coverage:.0%} interval {slow.low:+.2%} to {slow.high:+.2%}, {slow.rounds} rounds)"
    )
    return _goal(name, text, slow.median <= 0.012)


def _peer(found: Figures, peer: str, part: float) -> dict[str, Any]:
    name = f"an event costs at most {part:g} of {peer}'s, {POPULATE}"
    ours, theirs = (_get(found, POPULATE, who, "cost_ns", "median") for who in (OURS_ALL, peer))
    if ours is None or not theirs:
        return _goal(name, None, None)
    return _goal(name, f"{ours:.0f} ns and {theirs:.0f} ns: {ours / theirs:.2f}", ours <= part * theirs)


def _get(found: Any, *path: str) -> Any:
    for key in path:
        found = found.get(key) if found else None
    return found


def _goal(name: str, measured: str | None, reached: bool | None) -> dict[str, Any]:
    return {"goal": name, "measured": measured or "not measured", "reached": reached}
