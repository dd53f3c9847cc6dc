"""What `verify` prints of each difference that it found, and of the rules that a trace exercised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analyze.verify import runs_of
from analyze.words.mismatches import change_words
from analyze.words.terminal import clean, counted, wrapped
from analyze.words.who import records as _records
from collect.schema import Level

if TYPE_CHECKING:
    from analyze.compare import Difference
    from analyze.verify import Verification
    from analyze.words.mismatches import Told

__all__ = ["MAX_SHOWN", "difference_lines", "rule_lines"]

MAX_SHOWN = 8
"""Differences of a kind that are printed; `--json` lists more."""

_WHEN = {"before": "before the call", "first": "first page, after the call", "last": "last page, after the call"}


def difference_lines(found: Verification) -> list[str]:
    """Each difference: the page, both answers, the rule, and the change: who made it, when and through what."""
    lines = []
    for check in [check for check in found.between if not check.exact][:MAX_SHOWN]:
        seconds = (check.ts_ns - found.start_ns) / 1e9
        lines.append(f"  snapshot {check.number} ({check.moment.name.lower()}, {seconds:.1f} s after the start):")
        lines.append(f"      {check.difference.level:,} wrong in level, {check.difference.attributes:,} in attributes")
        lines += _run_lines(check.difference, MAX_SHOWN // 4, None)
    if found.difference is not None:
        lines += _run_lines(found.difference, MAX_SHOWN, found.told)
    if found.observed is not None:
        for leaf in _records(found.observed.differ.head(MAX_SHOWN)):
            size = "1G" if leaf["level"] == Level.G1 else "2M"
            lines.append(f"  {size} entry of pfn {leaf['pfn']:#x}: split {leaf['rebuilt']} x by our rules,")
            lines.append(f"      observed {leaf['observed']} x (call {leaf['call_id']})")
            lines += _change_lines("by", found.told.of_call(leaf["call_id"]))
    for row in _records(found.rules[~found.rules["ambiguous"]].head(MAX_SHOWN)):
        words = found.told.mismatch(row)
        lines.append(f"  pfn {row['page']:#x}, {_WHEN[row['when']]}:")
        lines.append(f"      predicted {words['predicted']}")
        lines.append(f"      observed  {words['observed']}")
        lines += _rule_lines(words)
        lines += _change_lines("change", words["change"])
    return [clean(line, 120) for line in lines]


def rule_lines(found: Verification) -> list[str]:
    """Changes per rule, those that were met first met first."""
    lines = ["  rules met by this trace (changes that exercised each)"]
    lines += [f"  {n:>9,}  {rule.text}" for rule, n in found.met.items() if n]
    missing = [rule.name.lower() for rule, n in found.met.items() if not n]
    if missing:
        lines.append(f"  never met: {len(missing)} rules")
        line = "            "
        for name in missing:
            if len(line) + len(name) > 76:
                lines.append(line)
                line = "            "
            line += f" {name}"
        lines.append(line)
    return lines


def _run_lines(difference: Difference, most: int, told: Told | None) -> list[str]:
    lines = []
    for run in runs_of(difference, most):
        lines.append(f"  pfn {run['pfn']:#x}, {counted(run['n_pages'], 'page')}:")
        if told is None:
            lines.append(f"      rebuilt level {run['rebuilt_level']} attrs {run['rebuilt_attrs']:#x},")
            lines.append(f"      snapshot level {run['snapshot_level']} attrs {run['snapshot_attrs']:#x}")
            continue
        words = told.run(run)
        lines.append(f"      rebuilt   {words['rebuilt']}")
        lines.append(f"      snapshot  {words['snapshot']}")
        lines += _rule_lines(words)
        lines += _change_lines("last", words["last_change"]) or ["      last      no recorded change touched this page"]
        if words["last_split"] and words["last_split"] != words["last_change"]:
            lines += _change_lines("split", words["last_split"])
    return lines


def _rule_lines(words: dict[str, Any]) -> list[str]:
    return wrapped(f"rule      {clean(words['rule'], 200)} ({clean(words['source'], 200)})", 6, 10)


def _change_lines(label: str, change: dict[str, Any] | None) -> list[str]:
    if change is None:
        return []
    first, *more = change_words(change)
    return [f"      {label:<9} {first}", *[f"                {line}" for line in more]]
