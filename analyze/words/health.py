"""The health of a trace in words: lines for a terminal or a mail."""

from __future__ import annotations

from analyze.health import SOUND, Explained, Health, LevelGap, Lost
from analyze.words.terminal import clean, counted, table, wrapped

__all__ = [
    "NOTHING_LOST",
    "clock_text",
    "consistency_text",
    "explained_text",
    "health_lines",
    "levels_text",
    "verdict_lines",
    "verdict_text",
]

NOTHING_LOST = "nothing, by the recorder's own counters"
"""They count what the recorder knows of; page events that contradict each other tell of others that were not seen."""

MAX_SHOWN = 6
"""Spans and gaps a list in words holds; the JSON has more."""


def verdict_text(found: Health) -> str:
    """The verdict and why, in one sentence."""
    if found.verdict == SOUND:
        proof = (
            "every check that could be made agrees, and no change was lost" if found.analysed else "nothing was lost"
        )
        beside = [conclusion.text.split(":")[0] for conclusion in found.conclusions if conclusion.in_doubt]
        return f"{found.verdict}: {proof}" + (f"; in doubt, but not of the map: {', '.join(beside)}" if beside else "")
    return f"{found.verdict}: {'; '.join(found.why)}"


def explained_text(explained: Explained) -> str:
    """How much has an owner."""
    if not explained.changes:
        return "no changes of the map were recorded"
    other, others = explained.changes_of.get("other", 0), explained.splits_of.get("other", 0)
    text = (
        f"{_share(explained.changes - other, explained.changes)} of {counted(explained.changes, 'change')} have a user, "
        f"{_share(explained.changes_named, explained.changes)} a module or program name"
    )
    if explained.changes_without_stack:
        text += f", {explained.changes_without_stack:,} no stack"
    if explained.splits:
        text += (
            f"; of {counted(explained.splits, 'split')} {_share(explained.splits - others, explained.splits)} have a user, "
            f"{_share(explained.splits_named, explained.splits)} a name"
        )
        if explained.splits_without_stack:
            text += f", {explained.splits_without_stack:,} no stack"
    return text + ("; what has no user is called other" if other or others else "")


def levels_text(found: Health) -> str:
    """Whether /proc/meminfo is apart from the page tables, and whether that changed while recording."""
    stated = [gap for gap in found.levels if gap.apart_start_kb is not None and gap.apart_end_kb is not None]
    if not stated:
        return "/proc/meminfo states no DirectMap counters, or none were read"
    apart = [gap for gap in stated if gap.apart_start_kb]
    if not apart and all(gap.apart_end_kb == 0 for gap in stated):
        return "/proc/meminfo's DirectMap counters say what the page tables say"
    moved = [gap for gap in stated if gap.apart_end_kb != gap.apart_start_kb]
    begin = (
        f"apart from the page tables at the start ({_apart(apart, 'apart_start_kb')})"
        if apart
        else "right at the start"
    )
    if not moved:
        end = "as much at the end"
    elif all(gap.apart_end_kb == 0 for gap in stated):
        end = "right at the end"
    else:
        end = f"at the end {_apart(moved, 'apart_end_kb')}"
    return (
        f"/proc/meminfo is {begin}, {end}; the page tables count: meminfo drifts at boot, and is read some time before or "
        "after them"
    )


def _apart(gaps: list[LevelGap], when: str) -> str:
    return ", ".join(f"{gap.level} by {getattr(gap, when):+,} kB" for gap in gaps)


def verdict_lines(found: Health) -> list[str]:
    """The verdict and why, ASCII, under 80 columns."""
    return wrapped(f"Health: {clean(verdict_text(found), 600)}", hang=2)


def health_lines(found: Health) -> list[str]:
    """What stands behind the verdict, ASCII, under 80 columns."""
    lines = []
    for conclusion in found.conclusions:
        state = "in doubt" if conclusion.in_doubt else "holds"
        lines += _entry(state, conclusion.text + "".join(f"; {why}" for why in conclusion.why))
    lines += _loss_lines(found.losses)
    if found.explained:
        lines += _entry("explained", explained_text(found.explained))
    lines += _entry("consistent", consistency_text(found))
    if found.levels:
        lines += _entry("counters", levels_text(found))
        lines += table(
            ["kB mapped by", "tables, start", "meminfo", "tables, end", "meminfo"],
            [
                [
                    gap.level,
                    *(
                        _kb(n)
                        for n in (gap.walked_start_kb, gap.meminfo_start_kb, gap.walked_end_kb, gap.meminfo_end_kb)
                    ),
                ]
                for gap in found.levels
            ],
            indent=13,
        )
    lines += _entry("clock", clock_text(found))
    for probe in found.missing_probes:
        lines += _entry("no probe", f"{probe['name']}: {probe['why']}; cost: {probe['costs']}")
    if found.emulated:
        lines += _entry("emulated", "times and rates say nothing; which pages were changed by whom is real")
    return lines


def _loss_lines(losses: list[Lost]) -> list[str]:
    if not losses:
        return _entry("lost", NOTHING_LOST)
    lines = []
    for lost in losses:
        spans = ", ".join(f"{s.from_s:.1f}-{s.to_s:.1f} s: {s.lost:,}" for s in lost.spans[:MAX_SHOWN])
        more = f", {lost.n_spans - MAX_SHOWN} more" if lost.n_spans > MAX_SHOWN else ""
        when = f" ({spans}{more})" if spans else " (counted when the recorder ended)"
        lines += _entry("lost", f"{lost.lost:,} {lost.text}{when}")
    return lines


def consistency_text(found: Health) -> str:
    """What in the trace does not fit together."""
    parts = []
    if found.calls_without_return is not None:
        parts.append(f"{found.calls_without_return:,} calls without their return")
    if found.nested_calls_without_parent is not None:
        parts.append(f"{found.nested_calls_without_parent:,} nested calls without their parent")
    if found.frees_without_allocation is not None:
        parts.append(f"{found.frees_without_allocation:,} frees of pages not known to be allocated")
    if found.allocations_without_free is not None:
        parts.append(f"{found.allocations_without_free:,} pages allocated twice without a free between")
    return ", ".join(parts) or "nothing to hold against each other"


def clock_text(found: Health) -> str:
    """How often the counters were read, and when they were not."""
    text = f"{counted(found.readings, 'reading')} of the counters, at most {found.longest_gap_s:.1f} s apart while recording"
    if found.n_gaps:
        spans = ", ".join(f"{gap.from_s:.1f}-{gap.to_s:.1f} s" for gap in found.gaps[:MAX_SHOWN])
        more = f" and {found.n_gaps - MAX_SHOWN} more" if found.n_gaps > MAX_SHOWN else ""
        text += f"; without any: {spans}{more}; a loss there is counted, but when is not known"
    return text


def _entry(name: str, text: str) -> list[str]:
    first, *rest = wrapped(clean(text, 2000), columns=66)
    return [f"  {name:<11}{first}", *[" " * 13 + line for line in rest]]


def _share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f} %" if total else "none"


def _kb(n: int | None) -> str:
    return "-" if n is None else f"{n:,}"
