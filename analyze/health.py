"""The health of a trace: what was lost and when, what is explained, whether it contradicts itself, and what that puts in doubt.

Every report begins with it. Nothing here is a guess: a number is counted in the trace, or it is None and the text says
what it would have taken.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from analyze.analysis import Analysis
from analyze.attribute import USER_NAMES
from analyze.counter_series import CounterSeries
from analyze.loss_times import MAX_SPANS, Gap, LossSpan, Lost, gaps_between_readings, losses_over_time
from analyze.losses import ARRAY_PAGES, CONCLUSIONS, Doubt, lost_for
from analyze.pages.events import page_events
from analyze.words.plain_text import plain
from collect.schema import LEAF_PAGES, Level
from collect.trace import Trace

__all__ = ["BROKEN", "DOUBTED", "SOUND", "Conclusion", "Health", "LossSpan", "Lost", "health"]

SOUND, DOUBTED, BROKEN = "sound", "in doubt", "broken"

_KB_OF_LEAF = {"4K": 4, "2M": 4 * LEAF_PAGES[Level.M2], "1G": 4 * LEAF_PAGES[Level.G1]}
_MEMINFO = {"4K": "meminfo/DirectMap4k", "2M": "meminfo/DirectMap2M", "1G": "meminfo/DirectMap1G"}
_COLUMN = {"4K": "k4", "2M": "m2", "1G": "g1"}


@dataclass(frozen=True)
class Conclusion:
    """Something that readers conclude from a trace, and what puts it in doubt; `why` is empty where nothing does."""

    text: str
    why: list[str]

    @property
    def in_doubt(self) -> bool:
        return bool(self.why)


@dataclass(frozen=True)
class Explained:
    """How much of the changes of the map and of the splits has an owner.

    Attributes:
        changes_of, splits_of: by user; "other" is what no stack and no region explains.
        changes_named, splits_named: those with a module or program name.
        changes_without_stack, splits_without_stack: no stack was recorded for the call they belong to.
    """

    changes: int
    changes_of: dict[str, int]
    changes_named: int
    changes_without_stack: int
    splits: int
    splits_of: dict[str, int]
    splits_named: int
    splits_without_stack: int


@dataclass(frozen=True)
class LevelGap:
    """kB that entries of one size map, by the page tables and by /proc/meminfo, which drifts at boot; None: not stated."""

    level: str
    walked_start_kb: int
    meminfo_start_kb: int | None
    walked_end_kb: int
    meminfo_end_kb: int | None

    @property
    def apart_start_kb(self) -> int | None:
        return None if self.meminfo_start_kb is None else self.meminfo_start_kb - self.walked_start_kb

    @property
    def apart_end_kb(self) -> int | None:
        return None if self.meminfo_end_kb is None else self.meminfo_end_kb - self.walked_end_kb


@dataclass(frozen=True)
class Health:
    """The health of one trace.

    Attributes:
        verdict: SOUND, DOUBTED (something could not be seen) or BROKEN (something contradicts something else). Of a trace
            with a map it is about the map and whose doing it is; what only page events suffered stands in `conclusions`.
        analysed: False where there is no state to rebuild (--only-pages); what belongs to the map is then None or empty.
    """

    trace: str
    verdict: str
    why: list[str]
    conclusions: list[Conclusion]
    losses: list[Lost]
    analysed: bool
    exact: bool | None
    explained: Explained | None
    calls_without_return: int | None
    nested_calls_without_parent: int | None
    frees_without_allocation: int | None
    allocations_without_free: int | None
    levels: list[LevelGap]
    splits: dict[str, Any] | None
    readings: int
    longest_gap_s: float
    gaps: list[Gap]
    n_gaps: int
    complete: bool
    ended: str
    emulated: bool
    pages: str
    missing_probes: list[dict[str, str]] = field(default_factory=list)

    @property
    def lost(self) -> int:
        return sum(lost.lost for lost in self.losses)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the keys stand in docs/json.md."""
        plain_values = asdict(self)
        for conclusion, found in zip(plain_values["conclusions"], self.conclusions, strict=True):
            conclusion["in_doubt"] = found.in_doubt
        return {**plain_values, "lost": self.lost}


def health(trace: Trace, analysis: Analysis | None) -> Health:
    """Work it out. `analysis` is None for a trace without state (--only-pages). Raises TraceError."""
    manifest = trace.manifest
    series = CounterSeries(trace)
    verification = analysis.verification if analysis else None
    array_pages = verification["losses"].get(ARRAY_PAGES, 0) if verification else 0
    losses = losses_over_time(trace, array_pages, series)
    gaps, longest = gaps_between_readings(series, manifest["ts_start_ns"], manifest["ts_end_ns"])
    unfinished = verification["unfinished_calls"] if verification else None
    orphans = verification["orphan_calls"] if verification else None
    explained = _explained(analysis) if analysis else None
    wrong, doubted = _verdict(trace, verification)
    pages = manifest["sampling"].get("pages") != "none"
    events = analysis.pages if analysis else page_events(trace) if trace.n_rows("pages") else None
    skipped = (series.after("recorder/page_programs_not_run", manifest["ts_end_ns"]) or 0) if pages else 0
    ended = manifest.get("ended")
    emulated = bool(manifest["cpu"].get("emulated"))
    verdict = BROKEN if wrong else DOUBTED if doubted else SOUND
    return Health(
        trace=plain(trace.path.absolute().name),
        verdict=verdict,
        why=wrong + doubted,
        conclusions=_conclusions(
            losses,
            wrong if analysis else None,
            unfinished or 0,
            orphans or 0,
            explained,
            skipped if pages else None,
            events.contradictions if events else 0,
        ),
        losses=losses,
        analysed=analysis is not None,
        exact=verification["exact"] if verification else None,
        explained=explained,
        calls_without_return=unfinished,
        nested_calls_without_parent=orphans,
        frees_without_allocation=events.frees_unknown + int(events.orders["frees_again"].sum()) if events else None,
        allocations_without_free=int(events.orders["allocated_again"].sum()) if events else None,
        levels=_levels(analysis, series) if analysis else [],
        splits=verification["splits"] if verification else None,
        readings=len(series.readings),
        longest_gap_s=longest,
        gaps=gaps[:MAX_SPANS],
        n_gaps=len(gaps),
        complete=manifest["complete"],
        ended=plain(str(ended), 80) if ended else "",
        emulated=emulated,
        pages=plain(str(manifest["sampling"].get("pages", "")), 20),
        missing_probes=_missing(manifest),
    )


def _explained(analysis: Analysis) -> Explained:
    attribution, columns = analysis.attribution, analysis.rebuilt.changes.columns
    user = np.bincount(attribution.change_user, minlength=len(USER_NAMES))
    stack = analysis.attribution.change_stack
    splits = attribution.splits
    of = splits["user"].value_counts()
    return Explained(
        changes=len(columns["ts_ns"]),
        changes_of={name: int(n) for name, n in zip(USER_NAMES, user, strict=True) if n},
        changes_named=int((attribution.change_name != "").sum()),
        changes_without_stack=int((stack == 0).sum()),
        splits=len(splits),
        splits_of={name: int(of[name]) for name in USER_NAMES if name in of.index},
        splits_named=int((splits["name"] != "").sum()),
        splits_without_stack=int((splits["stack_id"] == 0).sum()),
    )


def _levels(analysis: Analysis, series: CounterSeries) -> list[LevelGap]:
    """Page tables at START and END beside the readings nearest to them, from outside."""
    levels, rebuilt = analysis.rebuilt.levels, analysis.rebuilt
    first, last = levels.iloc[0], levels.iloc[-1]
    end = rebuilt.end.ts_last if rebuilt.end else analysis.trace.manifest["ts_end_ns"]
    return [
        LevelGap(
            level,
            int(first[_COLUMN[level]]) * kb,
            series.before(_MEMINFO[level], rebuilt.start.ts_first),
            int(last[_COLUMN[level]]) * kb,
            series.after(_MEMINFO[level], end),
        )
        for level, kb in _KB_OF_LEAF.items()
    ]


def _verdict(trace: Trace, verification: dict[str, Any] | None) -> tuple[list[str], list[str]]:
    """What is wrong (something contradicts something else), and what is in doubt (something could not be seen)."""
    manifest = trace.manifest
    wrong: list[str] = []
    doubted: list[str] = []
    if verification:
        pages = verification["level_mismatches"] + verification["attribute_mismatches"]
        if pages:
            wrong.append(f"{pages:,} pages at the end are not as start and changes say")
        between = verification["between"]
        if between["differ"]:
            pages = between["level_mismatches"] + between["attribute_mismatches"]
            where = f"{between['differ']:,} of {between['snapshots']:,} snapshots in between"
            wrong.append(f"{pages:,} pages in {where} are not as start and changes say")
        if verification["rule_mismatches"]:
            wrong.append(f"{verification['rule_mismatches']:,} times the probe saw what our rules do not predict")
        if (verification["splits_observed"] or {}).get("leaves_that_differ"):
            wrong.append(f"{verification['splits_observed']['leaves_that_differ']:,} splits seen are not those rebuilt")
        if verification["splits"]["agree"] is False:
            wrong.append("the kernel counted another number of splits")
        if not verification["end_snapshot"]:
            doubted.append("there is no end snapshot, so the state at the end was not checked")
        if verification["unfinished_calls"]:
            doubted.append(f"the return of {verification['unfinished_calls']:,} calls was not seen")
        if verification["orphan_calls"]:
            doubted.append(f"{verification['orphan_calls']:,} nested calls have no parent in the trace")
    else:
        doubted.append("it holds no snapshots, so there was nothing to check it against")
    losses = verification["losses"] if verification else manifest["losses"]
    lost = lost_for(losses, ~Doubt.PAGES if verification else Doubt.PAGES)
    if lost:
        doubted.append(f"{lost:,} events were lost")
    if not manifest["complete"]:
        why = plain(str(manifest.get("ended") or "the recorder was killed"), 80)
        doubted.append(f"it lacks its end ({why})")
    return wrong, doubted


def _conclusions(
    losses: list[Lost],
    wrong: list[str] | None,
    unfinished: int,
    orphans: int,
    explained: Explained | None,
    skipped: int | None,
    contradictions: int,
) -> list[Conclusion]:
    """Each conclusion that the trace allows, with what puts it in doubt.

    Args:
        wrong: what contradicts the rebuilt map; None where there is no map.
        skipped: page programs that the kernel did not run; None where no page events were recorded.
        contradictions: page events that cannot be after those before them.
    """
    found = []
    for doubt, text in CONCLUSIONS.items():
        if (skipped if doubt == Doubt.PAGES else wrong) is None:
            continue
        why = [f"{lost.lost:,} lost: {lost.text}{_when(lost)}" for lost in losses if text in lost.puts_in_doubt]
        if doubt & Doubt.MAP:
            why = [*(wrong or []), *why]
        if doubt & (Doubt.MAP | Doubt.WHO):
            why += [f"{unfinished:,} calls whose return was not seen"] * bool(unfinished)
        if doubt & Doubt.WHO:
            why += [f"{orphans:,} nested calls without their parent"] * bool(orphans)
            unknown = explained.changes_of.get("other", 0) if explained else 0
            if explained and unknown * 2 > explained.changes:  # nothing was lost, but nobody is named
                why.append(f"{unknown:,} of {explained.changes:,} changes have no user that we know: see their stacks")
        if doubt & Doubt.PAGES and skipped and not why:
            why.append(f"up to {skipped:,} may be missing: the kernel skipped our program, in scope of a region or not")
        if doubt & Doubt.PAGES and contradictions:
            why.append(f"{contradictions:,} contradict earlier ones, so as many others were not seen")
        found.append(Conclusion(text, why))
    return found


def _when(lost: Lost) -> str:
    if not lost.spans:
        return ""
    first, last = lost.spans[0].from_s, lost.spans[-1].to_s
    more = f", in {lost.n_spans} spans" if lost.n_spans > 1 else ""
    return f" (between {first:.0f} s and {last:.0f} s{more})"


def _missing(manifest: dict[str, Any]) -> list[dict[str, str]]:
    listed = manifest["probes"].get("missing")
    probes = [probe for probe in listed if isinstance(probe, dict)] if isinstance(listed, list) else []
    return [{key: plain(str(probe.get(key, "")), 200) for key in ("name", "why", "costs")} for probe in probes]
