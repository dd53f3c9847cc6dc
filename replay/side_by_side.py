"""Traces and policies on the same axes: a row for each pair, and what speaks against comparing the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyze.words.terminal import clean, size
from collect.errors import TraceError
from replay.costs import Costs
from replay.measures import BASELINE, MEASURES, saved, saved_by_user
from replay.policies.choose import choose, known
from replay.pricing import Pricing, costs_json, price
from replay.progress import Progress
from replay.results import Interval, PolicyResult
from replay.run import run_chosen

__all__ = ["MAX_RUNS", "Row", "SideBySide", "compare", "doubts", "row"]

MAX_RUNS = 1000
"""Replays of one command; each takes a second or so, and a line of the table."""

ALIKE = 0.1
"""Numbers of requests that differ by less than this share are alike."""


@dataclass(frozen=True)
class Row:
    """One trace under one policy.

    Attributes:
        trace: what the trace is called; names that come twice are paths.
        result: the replay.
        saved: by key of `replay.measures.MEASURES`, how much less than under the policy that all are held against.
        saved_by_user: 2M frames less that a user's changes split first.
        priced: what it costs, where a file of costs was given.
    """

    trace: str
    result: PolicyResult
    saved: dict[str, Interval]
    saved_by_user: dict[str, Interval]
    priced: Pricing | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "trace": self.trace,
            "policy": self.result.policy,
            "measures": {measure.key: measure.of(self.result).to_json() for measure in MEASURES},
            "saved": {key: value.to_json() for key, value in self.saved.items()},
            "saved_by_user": {user: value.to_json() for user, value in self.saved_by_user.items()},
            "priced": None if self.priced is None else self.priced.to_json(),
            "result": self.result.to_json(),
        }


def row(trace: str, base: PolicyResult, result: PolicyResult, costs: Costs | None = None) -> Row:
    """A row, held against `base`, and priced if there are costs."""
    return Row(
        trace=trace,
        result=result,
        saved={measure.key: saved(base, result, measure) for measure in MEASURES},
        saved_by_user=saved_by_user(base, result),
        priced=None if costs is None else price(result, base, costs),
    )


@dataclass(frozen=True)
class SideBySide:
    """The comparison.

    Attributes:
        against: the policy that all rows of a trace are held against, which is the first of them.
        rows: trace by trace, in the order asked for.
        doubts: why rows should not be compared as they stand, a sentence each.
        costs: by which the rows are priced, if any.
    """

    against: str
    rows: list[Row]
    doubts: list[str]
    costs: Costs | None = None

    @property
    def traces(self) -> list[str]:
        return list(dict.fromkeys(row.trace for row in self.rows))

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(row.result.policy for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        return {
            "against": self.against,
            "doubts": self.doubts,
            **costs_json(self.costs),
            "rows": [row.to_json() for row in self.rows],
        }


def compare(
    traces: Sequence[Path],
    names: Sequence[str] = (),
    *,
    against: str = BASELINE,
    settings: Sequence[str] = (),
    users: str | None = None,
    pressure: str | None = None,
    costs: Costs | None = None,
) -> SideBySide:
    """Replay every trace under every policy named (all by default), one trace after another in memory.

    `against` is a policy as `replay.policies.choose` takes it; `costs` price the rows; the other arguments are those of `replay.run.run_policies`.
    Raises TraceError for a trace that comes twice, or more than `MAX_RUNS` replays, and whatever `run_policies` raises.
    """
    policies = choose([against, *(names or known())], settings)
    n_runs = len(traces) * len(policies)
    if n_runs > MAX_RUNS:
        raise TraceError(
            f"{len(traces)} traces under {len(policies)} policies are {n_runs} replays, more than {MAX_RUNS}; name fewer"
        )
    labels = _labels(traces)
    rows: list[Row] = []
    with Progress(n_runs) as progress:
        for label, trace in zip(labels, traces, strict=True):
            results = run_chosen(trace, policies, users=users, pressure=pressure, progress=progress)
            rows += [row(label, results[0], result, costs) for result in results]
    return SideBySide(policies[0].label, rows, doubts(rows), costs)


def _labels(traces: Sequence[Path]) -> list[str]:
    resolved = [trace.resolve() for trace in traces]
    twice = next((trace for i, trace in enumerate(traces) if resolved[i] in resolved[:i]), None)
    if twice is not None:
        raise TraceError(f"{twice}: given twice; name each trace once")
    names = [path.name for path in resolved]
    return [clean(name if names.count(name) == 1 else trace, 60) for name, trace in zip(names, traces, strict=True)]


def doubts(rows: Sequence[Row]) -> list[str]:
    """What makes it unfair to hold the rows against each other, from what is known of each trace."""
    of = {row.trace: row.result for row in reversed(rows)}  # the first of each trace, what all is held against
    of = {trace: of[trace] for trace in dict.fromkeys(row.trace for row in rows)}
    found = _caches(rows, of)
    for trace, result in of.items():
        facts = result.provenance
        if facts["lost"]:
            found.append(f"{trace} lost {facts['lost']:,} events; bounds do not cover what they did.")
        if not facts["complete"]:
            found.append(f"{trace} was cut off and recovered: its last moments may be missing.")
        if facts["complete"] and not facts["lost"] and not facts["exact"]:
            found.append(f"{trace} is not proven exact: directmap-analyze verify says what does not fit.")
    if len(of) < 2:
        return found
    for differs, text, why in _DIFFERENCES:
        values = {trace: text(result) for trace, result in of.items()}
        if len(set(values.values())) > 1:
            said = ", ".join(f"{trace} {value}" for trace, value in values.items())
            found.append(f"{differs}: {said}. {why}")
    return found + _asked(of)


_DIFFERENCES: tuple[tuple[str, Callable[[PolicyResult], str], str], ...] = (
    (
        "Memory differs in size",
        lambda r: size(r.provenance["memory_pages"]),
        "The same pages lie further apart in more of it: compare what was saved within a trace, not frames between traces.",
    ),
    (
        "Some CPUs were emulated",
        lambda r: "emulated" if r.emulated else "real",
        "Load and recorder ran at other speeds; means over time differ for that alone.",
    ),
    (
        "Page events were not recorded alike",
        lambda r: clean(r.provenance["pages"], 20),
        "Where all are there, intervals are narrower.",
    ),
)


def _caches(rows: Sequence[Row], of: dict[str, PolicyResult]) -> list[str]:
    """Recorded kernels that have a cache already, which `none` then has too."""
    found = []
    for trace, base in of.items():
        has = [
            name
            for name, there in (("bpf_prog_pack", "has_packs"), ("execmem's ROX cache", "has_rox"))
            if base.provenance[there]
        ]
        asked = {row.result.as_asked for row in rows if row.trace == trace}
        if not has:
            continue
        own = " and ".join(has)
        if not base.as_asked:
            found.append(
                f"{trace}: its kernel has {own}, and `{base.policy}` with it: what is saved is saved on top of that. For what "
                "a kernel without would save: --against ungrouped, and NAME:requests=asked."
            )
        if asked == {True, False}:
            found.append(
                f"{trace}: rows with requests=asked begin from a kernel without {own}, the others from the recorded one."
            )
    return found


def _asked(of: dict[str, PolicyResult]) -> list[str]:
    """Users that did not ask for as much in every trace, in one sentence."""
    parts = []
    for user in dict.fromkeys(user for result in of.values() for user in result.requests_by_user):
        counts = [result.requests_by_user.get(user, 0) for result in of.values()]
        if max(counts) - min(counts) > ALIKE * max(counts):
            parts.append(f"{user} {' / '.join(f'{count:,}' for count in counts)}")
    return [f"Not as much was asked for ({' / '.join(of)}): {', '.join(parts)} requests."] if parts else []
