"""The table of the validation: docs/validation.md whole, and a part of README.md, made from the books alone."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from replay.another_run import APART, another_run
from replay.results import PolicyResult
from tests.vm.matrix_tables import with_table
from tests.vm.validation import books, published
from tests.vm.validation.cells import EARLIER, LOADS, RFC, RUNS, Run

__all__ = ["BEGIN", "END", "Outcome", "for_readme", "foretold", "outcomes", "page", "summary", "write"]

BEGIN, END = "<!-- validation:begin -->", "<!-- validation:end -->"

FEWEST_FRAMES = 50
"""A run in which fewer frames were split says little, and is not counted."""

GOALS = {"runs": 40, "error": 0.05, "inside": 0.95, "width": 0.20}


_HEAD = """\
| load, memory, seed | kernels | policy | recorded | predicted | measured | error | inside | committed before |
|---|---|---|--:|--:|--:|--:|---|---|"""


_FIRST_APART = 0.09
"""`APART` of the predictions that do not say it."""


class Outcome:
    """A run whose two sides are both known."""

    def __init__(self, run: Run, foretold: dict[str, Any], found: dict[str, Any]) -> None:
        self.run = run
        self.foretold, self.found = foretold, found
        self.recorded = int(foretold["recorded"])
        self.expected = float(foretold["expected"])
        self.lo, self.hi = (float(value) for value in foretold["another_run"])
        self.apart = float(foretold.get("apart", _FIRST_APART))
        self.measured = int(found["split_2m"])
        self.error = (self.expected - self.measured) / self.measured if self.measured else float("inf")
        self.inside = self.lo <= self.measured <= self.hi
        self.width = (self.hi - self.lo) / self.measured if self.measured else float("inf")
        # The commit of the prediction is older than the recording; both in UTC, to the second.
        self.blind = found["predicted_in"] is not None and _moment(found["predicted_in"][1]) < _moment(found["date"])
        self.counts = self.measured >= FEWEST_FRAMES

    def line(self) -> str:
        """A row of docs/validation.md."""
        run = self.run
        marks = "" if self.counts else " (not counted)"
        cells = (
            f"{run.source.load}, {run.source.memory}, {run.source.seed}{marks}",
            f"{run.source.kernel} → {run.target.kernel}",
            run.policy,
            f"{self.recorded}",
            f"{self.expected:g} ({self.lo:g}–{self.hi:g})",
            f"{self.measured}",
            f"{self.error:+.1%}",
            "yes" if self.inside else "**no**",
            "yes" if self.blind else "**no**",
        )
        return f"| {' | '.join(cells)} |"


def _moment(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)


def outcomes(runs: Sequence[Run] = RUNS) -> list[Outcome]:
    """Those of the runs of which both sides are known, in their order."""
    predicted, measured = books.read(books.PREDICTED), books.read(books.MEASURED)
    return [
        Outcome(run, predicted[run.name], measured[run.target.name])
        for run in runs
        if run.name in predicted and run.target.name in measured
    ]


def summary(found: Sequence[Outcome], *, by_memory: bool = True) -> str:
    """A row a pair of kernels (and kind of memory), and one for all, beside the goals."""
    counted = [outcome for outcome in found if outcome.counts]
    groups: dict[tuple[str, ...], list[Outcome]] = {}
    for outcome in counted:
        run = outcome.run
        key = (
            f"{run.source.kernel} → {run.target.kernel}",
            run.source.load,
            run.policy,
            run.source.memory if by_memory else "fresh, aged",
        )
        groups.setdefault(key, []).append(outcome)
    lines = [
        "| kernels | load | policy | memory | runs | frames split: recorded → measured | median error | measured inside | median width |",
        "|---|---|---|---|--:|---|--:|--:|--:|",
    ]
    for key, some in groups.items():
        lines.append(f"| {' | '.join(key)} | {_figures(some)} |")
    if counted:
        lines.append(f"| **all** | | | | {_figures(counted)} |")
    goal = f"at least {GOALS['runs']} | | {GOALS['error']:.0%} | {GOALS['inside']:.0%} | {GOALS['width']:.0%}"
    lines.append(f"| goal | | | | {goal} |")
    return "\n".join(lines)


def _figures(some: Sequence[Outcome]) -> str:
    inside = sum(outcome.inside for outcome in some)
    recorded, measured = ([getattr(o, name) for o in some] for name in ("recorded", "measured"))
    return " | ".join(
        (
            str(len(some)),
            f"{min(recorded)}–{max(recorded)} → {min(measured)}–{max(measured)}",
            f"{median(abs(o.error) for o in some):.1%}",
            f"{inside} of {len(some)} ({inside / len(some):.0%})",
            f"{median(o.width for o in some):.1%}",
        )
    )


def reached(found: Sequence[Outcome]) -> str:
    """Which goals were reached, in a sentence."""
    counted = [outcome for outcome in found if outcome.counts]
    if not counted:
        return "No run has been made yet."
    error = median(abs(outcome.error) for outcome in counted)
    inside = sum(outcome.inside for outcome in counted) / len(counted)
    width = median(outcome.width for outcome in counted)
    said = {
        f"runs ({len(counted)} of {GOALS['runs']})": len(counted) >= GOALS["runs"],
        f"median error ({error:.1%}, at most {GOALS['error']:.0%})": error <= GOALS["error"],
        f"measured inside ({inside:.0%}, at least {GOALS['inside']:.0%})": inside >= GOALS["inside"],
        f"median width ({width:.1%}, at most {GOALS['width']:.0%})": width <= GOALS["width"],
    }
    good = [goal for goal, held in said.items() if held]
    bad = [goal for goal, held in said.items() if not held]
    blind = sum(outcome.blind for outcome in counted)
    words = f"Reached: {', '.join(good) or 'nothing'}. " + (f"**Not reached: {', '.join(bad)}.** " if bad else "")
    now = [outcome for outcome in counted if outcome.apart == APART]
    words += (
        f"Intervals reached {_FIRST_APART:.0%} to either side at first, which the first runs showed to be too narrow; of the {len(now)} runs "
        f"predicted since with {APART:.0%}, the measured value lay inside in {sum(outcome.inside for outcome in now)}"
        + (f", at a median width of {median(outcome.width for outcome in now):.0%}. " if now else ". ")
    )
    return (
        f"{words}In {blind} of the {len(counted)} runs the prediction was committed before the other side was recorded."
    )


_OTHERWISE = (
    (
        "rox-cache",
        "7.2",
        "aged",
        "vmalloc of 7.2 takes blocks of order 1 and up where 6.12 took single pages (20251021194455.33351-2-vishal.moola@gmail.com; "
        "`directmap-analyze pages sample_traces/7.2-churn`), and in aged memory those lie where nothing was split before",
    ),
    (
        "none",
        "6.12",
        "",
        "under `none` nothing is modelled, so this is what the page allocators of 6.1 and 6.12 hand out otherwise",
    ),
)
"""Policy, kernel and memory whose runs differ for more than the policy's sake, and why. A replay knows the recorded kernel alone."""


def why(found: Sequence[Outcome]) -> str:
    """What stands behind the errors, in a sentence each, and the error of the runs that are left."""
    left = [outcome for outcome in found if outcome.counts]
    words = []
    for policy, kernel, memory, reason in _OTHERWISE:
        asked = [o for o in left if (o.run.policy, o.run.target.kernel) == (policy, kernel)]
        mine = [o for o in asked if memory in ("", o.run.source.memory)]
        left = [o for o in left if o not in mine]
        if mine:
            low = sum(outcome.error < 0 for outcome in mine)
            words.append(
                f"of the {len(mine)} runs on {kernel}{f', {memory}' if memory else ''}, {low} were predicted too low (median error "
                f"of all {len(mine)}: {median(abs(outcome.error) for outcome in mine):.1%}): {reason}"
            )
    if not words or not left:
        return ""
    inside = sum(outcome.inside for outcome in left)
    return (
        f"Where kernels differ in more than the policy, the replay cannot know it: {'; '.join(words)}. The {len(left)} other runs have a "
        f"median error of {median(abs(outcome.error) for outcome in left):.1%}, {inside} of them inside."
    )


def rfc_table() -> str:
    """What the RFC's cache would have done, a row a load."""
    known = books.read(books.RFC_PREDICTED)
    lines = [
        "| load, memory, seed | frames split, recorded | with the cache | refills by order | pages unmapped | held at most | held at the end |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for recorded in RFC:
        told = known.get(recorded.name)
        if told is None:
            continue
        refills = ", ".join(f"{_span(n)} of order {order}" for order, n in told["refills"].items()) or "none"
        cells = [_span(told[name]) for name in ("split_2m", "pages_unmapped", "idle_pages_peak", "idle_pages_end")]
        head = f"{recorded.load}, {recorded.memory}, {recorded.seed}"
        lines.append(f"| {head} | {told['recorded']} | {cells[0]} | {refills} | {' | '.join(cells[1:])} |")
    return "\n".join(lines)


def _span(pair: Sequence[float]) -> str:
    lo, hi = pair
    return f"{lo:,g}" if lo == hi else f"{lo:,g}–{hi:,g}"


def page(found: Sequence[Outcome]) -> str:
    """docs/validation.md."""
    loads = [f"* `{name}`: `tests/vm/loads/users.py {arguments}`" for name, (arguments, _) in LOADS.items()]
    return "\n".join(
        [
            "# Predictions, held against kernels",
            "",
            "Made by `make validate`; not edited by hand. A run is two recordings of one seeded load on two kernels, in guests of one CPU and",
            "4 GB: the first is replayed under the policy that the second kernel has built in; the second tells what that kernel did. Predicted",
            "is the number of 2M frames whose entry is split while the load runs; the most likely value, and the interval in which another run should fall.",
            "Predictions stand in `docs/validation/predicted.jsonl`, committed before the other side was recorded (`predicted_in` of `measured.jsonl` is the",
            "commit that holds it, and when that was made). Every recording was held against the page tables by `analyze verify`.",
            "",
            summary(found),
            "",
            reached(found),
            "",
            why(found),
            "",
            "One run alone: `make validate RUNS=users-5.10-6.1-fresh-11`. The loads:",
            "",
            *loads,
            "",
            "## Run by run",
            "",
            f"Runs in which fewer than {FEWEST_FRAMES} frames were split are not counted.",
            "",
            _HEAD,
            *(outcome.line() for outcome in found),
            "",
            "An earlier series, not counted: there each kernel chose its modules by itself, among those that need no other there, and 3 (5.10 and 6.1) to 17",
            "(6.12 and 7.2) of 100 were not the same on the second kernel.",
            "",
            _HEAD,
            *(outcome.line() for outcome in outcomes(EARLIER)),
            "",
            "## The RFC itself, foretold",
            "",
            "Seeded loads on Debian's 6.1, replayed under `gfp-unmapped` (as posted, its mask repaired); for whoever holds them against a kernel that carries the",
            "patches. `make validate RUNS='rfc-*'` makes them.",
            "",
            rfc_table(),
            "",
            "## The published experiment, repeated",
            "",
            "Aaron Lu, November 2022: a BPF program of three pages in each of so many processes, in 8 GB (`make validate RUNS='published-*'`). Ours load a filter of",
            "that size and touch 1 MB each; the counts are the kernel's own (/proc/meminfo), nothing is recorded. What he reports of v6.1-rc3 is: no change.",
            "Ours lie denser than his, on 5.10 too; his processes are whole instances of sockex1, ours load one filter and touch memory, and what else differs was not looked into.",
            "On 6.1 ours fill a dozen packs, for each really has three pages of code; sockex1's has a few hundred bytes, and one pack holds them all.",
            "",
            published.table(),
            "",
        ]
    )


def for_readme(found: Sequence[Outcome]) -> str:
    """What stands in README.md between the marks."""
    return "\n\n".join(filter(None, (summary(found, by_memory=False), reached(found), why(found))))


def write(root: Path) -> None:
    """Write both."""
    found = outcomes()
    readme = root / "README.md"
    text = with_table(readme.read_text(encoding="utf-8"), for_readme(found), BEGIN, END)
    (root / "docs" / "validation.md").write_text(page(found), encoding="utf-8")
    readme.write_text(text, encoding="utf-8")


def foretold(result: PolicyResult) -> dict[str, Any]:
    """The most likely count of split frames, and the interval for another run."""
    return {"expected": result.split_2m.point, "another_run": another_run(result.split_2m).to_json(), "apart": APART}
