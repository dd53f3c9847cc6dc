"""Is a trace exact? Rebuilt state against the end snapshot, rules against the probe, splits against the counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.compare import Difference, compare
from analyze.counter_check import SplitCount, check_counters
from analyze.directmap import FRAME
from analyze.losses import ARRAY_PAGES, Doubt, lost_for
from analyze.moments import MomentCheck, check_moments
from analyze.observed_splits import SplitDifference, compare_splits
from analyze.reconstruct import Rebuild, rebuild
from analyze.rule_check import rule_mismatches
from analyze.rule_count import count_rules
from analyze.rule_names import Rule
from analyze.snapshots import load_map
from analyze.stacks import Stacks
from analyze.words.mismatches import Told
from collect.schema import ChangeKind, Level, Moment
from collect.trace import Trace

__all__ = ["Verification", "runs_of", "verify"]

MAX_JSON_ROWS = 100
"""Unexplained runs of pages and rule mismatches that `to_json` lists; all are counted."""

MAX_JSON_RUNS_BETWEEN = 8
"""The same of each snapshot between the ends."""


@dataclass
class Verification:
    """What the checks found.

    Attributes:
        difference: rebuilt state (a) against the END snapshot (b); None where the trace has no END snapshot.
        between: each snapshot taken between START and END against the state rebuilt for it.
        rules: one row per page where prediction and observation differ (`analyze.rule_check.rule_mismatches`).
        splits: found and counted, by Level.
        observed: splits as they were seen done against the rebuilt ones; None where they could not be seen.
        lost: losses by class (`analyze.losses`), as the recorder counted them, and pages of arrays that it could not record.
        unfinished: calls whose return was not seen.
        orphans: nested calls whose parent is not in the trace.
        around: splits between the snapshots outside the recording, {"before_start" | "after_end": {Level: n}}:
            loading and unloading our own probes is in there. A moment that was not recorded is missing.
        stacks: the stacks of the trace.
        start_ns: when the START snapshot was read.
        met: changes that exercised each rule (`analyze.rule_count`).
        told: says what a change was, and which touched a page last.
    """

    difference: Difference | None
    between: list[MomentCheck]
    rules: pd.DataFrame
    splits: dict[Level, SplitCount]
    observed: SplitDifference | None
    lost: dict[str, int]
    unfinished: int
    orphans: int
    around: dict[str, dict[Level, int]]
    stacks: Stacks
    start_ns: int
    met: dict[Rule, int]
    told: Told
    n_changes: int
    n_direct: int

    @property
    def lost_events(self) -> int:
        return sum(self.lost.values())

    @property
    def lost_of_map(self) -> int:
        """Losses that put the state of the map in doubt; a lost page event does not (`analyze.losses`)."""
        return lost_for(self.lost, Doubt.MAP)

    @property
    def rule_count(self) -> int:
        """Mismatches that no overlapping change can explain."""
        return int((~self.rules["ambiguous"]).sum())

    @property
    def exact(self) -> bool:
        """The state of the map is proven: nothing differs, no change was lost, no call is unfinished, the counters agree or
        do not exist, and so do splits."""
        return (
            self.difference is not None
            and self.difference.level == 0
            and self.difference.attributes == 0
            and all(check.exact for check in self.between)
            and self.rule_count == 0
            and self.lost_of_map == 0
            and self.unfinished == 0
            and (self.observed is None or len(self.observed.differ) == 0)
            and all(count.agree is not False for count in self.splits.values())
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; page frame numbers and attribute words as integers."""
        compared = self.difference
        m2, g1 = self.splits[Level.M2], self.splits[Level.G1]
        agree = None if m2.agree is None and g1.agree is None else m2.agree is not False and g1.agree is not False
        return {
            "exact": self.exact,
            "end_snapshot": compared is not None,
            "pages_compared": compared.pages if compared else 0,
            "level_mismatches": compared.level if compared else 0,
            "attribute_mismatches": compared.attributes if compared else 0,
            "between": self._between(),
            "rule_mismatches": self.rule_count,
            "rule_ambiguous": int(self.rules["ambiguous"].sum()),
            "rules_met": {rule.name.lower(): n for rule, n in self.met.items()},
            "splits": {
                "found_2m": m2.found,
                "found_1g": g1.found,
                "high_mapping_2m": m2.high,
                "high_mapping_1g": g1.high,
                "decoys_2m": m2.decoys,
                "decoys_1g": g1.decoys,
                "counted_2m": m2.counted,
                "counted_1g": g1.counted,
                "slack": max(m2.slack, g1.slack) if agree is not None else 0,
                "agree": agree,
            },
            "splits_observed": self._observed(),
            "lost_events": self.lost_events,
            "lost_events_of_map": self.lost_of_map,
            "losses": self.lost,
            "unfinished_calls": self.unfinished,
            "orphan_calls": self.orphans,
            "changes": self.n_changes,
            "direct_map_changes": self.n_direct,
            "exceptions": {
                "accessed_dirty_pages": compared.hardware_only if compared else 0,
                "kfence_pages": compared.kfence if compared else 0,
            },
            "outside_recording": {
                when: {"splits_2m": counts[Level.M2], "splits_1g": counts[Level.G1]}
                for when, counts in self.around.items()
            },
            "unexplained": self._unexplained(),
            "rule_mismatch_list": self._rule_list(),
        }

    def _unexplained(self) -> list[dict[str, Any]]:
        if self.difference is None:
            return []
        return [{**run, **self.told.run(run)} for run in runs_of(self.difference, MAX_JSON_ROWS)]

    def _between(self) -> dict[str, Any]:
        """The snapshots between the two ends: their sum, and each."""
        checks = self.between
        told = [check.frames_again for check in checks if check.frames_again is not None]
        return {
            "snapshots": len(checks),
            "differ": sum(not check.exact for check in checks),
            "pages_compared": sum(check.difference.pages for check in checks),
            "level_mismatches": sum(check.difference.level for check in checks),
            "attribute_mismatches": sum(check.difference.attributes for check in checks),
            "changes": sum(check.changes for check in checks),
            "fewest_changes_between_neighbours": min((check.changes for check in checks), default=0),
            "frames_read_again": sum(told) if told else None,
            "frames_undecided": sum(check.undecided for check in checks),
            "list": [
                {
                    "snapshot": check.number,
                    "moment": check.moment.name,
                    "ts_ns": check.ts_ns,
                    "ts_end_ns": check.ts_end_ns,
                    "exact": check.exact,
                    "pages_compared": check.difference.pages,
                    "level_mismatches": check.difference.level,
                    "attribute_mismatches": check.difference.attributes,
                    "accessed_dirty_pages": check.difference.hardware_only,
                    "kfence_pages": check.difference.kfence,
                    "changes_since_the_one_before": check.changes,
                    "entries_changed_since_the_one_before": check.entries,
                    "frames_read_again": check.frames_again,
                    "rounds": check.rounds,
                    "frames_undecided": check.undecided,
                    "unexplained": runs_of(check.difference, MAX_JSON_RUNS_BETWEEN),
                }
                for check in checks
            ],
        }

    def _observed(self) -> dict[str, Any] | None:
        """Null where splits were not observed."""
        if self.observed is None:
            return None
        differ = self.observed.differ
        shown = differ.head(MAX_JSON_ROWS)
        columns = {name: shown[name].tolist() for name in shown.columns}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return {
            "count": self.observed.observed,
            "leaves_that_differ": len(differ),
            "list": [{**row, "change": self.told.of_call(row["call_id"])} for row in rows],
        }

    def _rule_list(self) -> list[dict[str, Any]]:
        shown = self.rules[~self.rules["ambiguous"]].head(MAX_JSON_ROWS)
        columns = {name: shown[name].tolist() for name in shown.columns}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [{**row, **self.told.mismatch(row), "stack": self.stacks.frames(row["stack_id"])} for row in rows]


def runs_of(difference: Difference, most: int) -> list[dict[str, int]]:
    """The first runs of pages that differ."""
    names = ("pfn", "n_pages", "rebuilt_level", "rebuilt_attrs", "snapshot_level", "snapshot_attrs")
    return [dict(zip(names, row, strict=True)) for row in difference.listed[:most].tolist()]


def verify(trace: Trace, rebuilt: Rebuild | None = None) -> Verification:
    """Check a trace. Raises TraceError where it cannot be read or rebuilt at all."""
    rebuilt = rebuilt or rebuild(trace)
    stacks = Stacks(trace)
    pool = trace.manifest["memory"].get("kfence_pool")
    kfence = (int(pool[0]), int(pool[1])) if pool else None
    difference = compare(rebuilt.final, rebuilt.end.map, kfence) if rebuilt.end else None
    columns = rebuilt.changes.columns
    lost = {str(name): int(n) for name, n in trace.manifest["losses"].items() if n}
    pages_lost = int(np.minimum(columns["n_pfns_lost"], 1 << 40).sum())
    if pages_lost:
        lost[ARRAY_PAGES] = pages_lost
    cpa = columns["kind"] == ChangeKind.CPA
    return Verification(
        difference=difference,
        between=check_moments(rebuilt.course, rebuilt.prediction.n_changed, kfence),
        rules=rule_mismatches(rebuilt),
        splits=check_counters(rebuilt, stacks),
        observed=compare_splits(rebuilt.splits, rebuilt.observed, rebuilt.changes, rebuilt.window),
        lost=lost,
        unfinished=int((cpa & (columns["has_exit"] == 0)).sum()),
        orphans=int(((columns["parent_id"] != 0) & ~np.isin(columns["parent_id"], columns["call_id"])).sum()),
        around=_around(trace, rebuilt),
        stacks=stacks,
        start_ns=rebuilt.start.ts_last,
        met=count_rules(rebuilt),
        told=Told(rebuilt, stacks, rebuilt.start.ts_last),
        n_changes=len(rebuilt.changes),
        n_direct=int(rebuilt.changes.direct.sum()),
    )


def _around(trace: Trace, rebuilt: Rebuild) -> dict[str, dict[Level, int]]:
    """One map after the other, since of a big host four do not fit in memory: their frames' levels are enough."""
    around = {}
    for when, moment, mine in (
        ("before_start", Moment.BEFORE_ATTACH, rebuilt.start),
        ("after_end", Moment.AFTER_DETACH, rebuilt.end),
    ):
        found = load_map(trace, rebuilt.snapshots, moment)
        if found is not None and mine is not None:
            theirs = found.frame_levels()
            del found
            ours = mine.map.frame_levels()
            around[when] = splits_between(*((theirs, ours) if mine is rebuilt.start else (ours, theirs)))
    return around


def splits_between(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> dict[Level, int]:
    """Leaves of `a` that are split in `b` (`DirectMap.frame_levels`): 1G ranges, and 2M frames that became 4K pages."""
    per_giga = (1 << 18) // FRAME
    gigas_a, gigas_b = a.reshape(-1, per_giga)[:, 0], b.reshape(-1, per_giga)
    return {
        Level.G1: int(((gigas_a == Level.G1) & (gigas_b != Level.G1).any(axis=1)).sum()),
        Level.M2: int(((a >= Level.M2) & (b == Level.K4)).sum()),
    }
