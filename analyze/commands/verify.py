"""`directmap-analyze verify`: exact or not, and what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from analyze.arguments import add_json, add_trace
from analyze.losses import CONCLUSIONS, Doubt, in_doubt, loss_of
from analyze.words.terminal import COLUMNS, clean, counted
from collect.command_line import Subparsers, add_command
from collect.schema import LEAF_PAGES, Level
from collect.trace import open_trace

if TYPE_CHECKING:
    from analyze.counter_check import SplitCount
    from analyze.verify import Verification

__all__ = ["EXACT", "NOT_EXACT", "add_to", "run"]

EXACT, NOT_EXACT = 0, 1


EXAMPLES = (
    ("directmap-analyze verify my-trace", "is it exact? the exit status says so too"),
    ("directmap-analyze verify my-trace --rules", "and how often each of the kernel's rules was met"),
    ("directmap-analyze verify my-trace --json", "the same for programs, differences and all"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands,
        "verify",
        "hold the rebuilt state against the snapshots, page by page",
        EXAMPLES,
        more="Exact means: the start snapshot and the recorded changes give the end snapshot, for every 4 KiB page, in level and attributes.",
        exits={0: "exact", 1: "read, but not exact"},
    )
    add_trace(parser)
    add_json(parser)
    parser.add_argument(
        "--rules", action="store_true", help="also how many changes exercised each of the kernel's rules"
    )
    parser.set_defaults(run=lambda options: run(options.directory, as_json=options.json, rules=options.rules))


def run(directory: Path, *, as_json: bool, rules: bool = False) -> int:
    """Verify and print; returns the exit status. Raises TraceError."""
    from analyze.verify import verify
    from analyze.words.verify import difference_lines, rule_lines

    trace = open_trace(directory)
    found = verify(trace)
    if as_json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print(f"{'exact' if found.exact else 'NOT EXACT'}: {clean(directory.name or directory)}")
        told = rule_lines(found) if rules else []
        print("\n".join(line[:COLUMNS] for line in [*_lines(found), *told, *difference_lines(found)]))
    return EXACT if found.exact else NOT_EXACT


def _lines(found: Verification) -> list[str]:
    difference = found.difference
    if difference is None:
        lines = ["  pages     no end snapshot to compare with (the recorder was killed?)"]
    else:
        lines = [
            f"  pages     {difference.pages:,} compared: {difference.level:,} wrong in level, "
            f"{difference.attributes:,} in attributes"
        ]
    lines += _between_lines(found)
    ambiguous = int(found.rules["ambiguous"].sum())
    lines += [
        f"  rules     {counted(found.n_direct, 'direct-map change')}: {found.rule_count:,} unlike what the probe saw",
        *([f"            {ambiguous:,} more undecided, since another change overlapped"] if ambiguous else []),
        *_counter_lines(found.splits),
        _observed_line(found),
        *_loss_lines(found),
    ]
    if difference is not None:
        lines.append(
            f"  left out  accessed/dirty ({counted(difference.hardware_only, 'page')} differ{'s' * (difference.hardware_only == 1)}), "
            f"KFENCE's pool ({counted(difference.kfence, 'page')})"
        )
    for when, text in (("before_start", "while attaching"), ("after_end", "while detaching")):
        if when in found.around:
            splits = found.around[when]
            lines.append(
                f"  {text:<17} {splits[Level.M2]:,} x 2M and {splits[Level.G1]:,} x 1G split, not part of the recording"
            )
    return lines


def _between_lines(found: Verification) -> list[str]:
    """The snapshots between start and end: one line for all."""
    checks = found.between
    if not checks:
        return []
    changes = sum(check.changes for check in checks)
    lines = [
        f"  between   {counted(len(checks), 'snapshot')}, {counted(changes, 'change')} before them: "
        f"{sum(check.wrong for check in checks):,} pages wrong"
    ]
    idle = sum(not check.changes for check in checks)
    if idle:
        lines.append(f"            {idle:,} with no change since the one before")
    told = [check.frames_again for check in checks if check.frames_again is not None]
    if told:
        pages = sum(told) * LEAF_PAGES[Level.M2]
        lines.append(
            f"            {counted(sum(told), '2M frame')} ({counted(pages, 'page')}) changed meanwhile, read again"
        )
    undecided = sum(check.undecided for check in checks)
    if undecided:
        lines.append(f"            {counted(undecided, '2M frame')} changed too often to be read: not compared")
    return lines


def _loss_lines(found: Verification) -> list[str]:
    """What the verdict is about, and beside it what says nothing about the map."""
    of_map = {name: n for name, n in found.lost.items() if loss_of(name).doubt & Doubt.MAP}
    others = {name: n for name, n in found.lost.items() if name not in of_map}
    lines = [f"  lost      {counted(sum(of_map.values()), 'event')}, {counted(found.unfinished, 'unfinished call')}"]
    lines += [f"            {n:,} {clean(name)}" for name, n in of_map.items()]
    if others:
        lines.append(f"            {sum(others.values()):,} more that say nothing about the map:")
        lines += [f"            {n:,} {clean(name)}" for name, n in others.items()]
        doubted = in_doubt(others)
        lines += [f"            in doubt: {text}" for doubt, text in CONCLUSIONS.items() if doubted & doubt]
    return lines


def _observed_line(found: Verification) -> str:
    if found.observed is None:
        return "            not observed one by one (no such probe, or a trace of format 1)"
    differ = len(found.observed.differ)
    agree = "DISAGREES, see below" if differ else "each as rebuilt"
    return f"            {found.observed.observed:,} observed one by one: {agree}"


def _counter_lines(splits: dict[Level, SplitCount]) -> list[str]:
    m2, g1 = splits[Level.M2], splits[Level.G1]
    lines = [f"  splits    {m2.found:,} x 2M, {g1.found:,} x 1G found"]
    if m2.high or g1.high or m2.decoys or g1.decoys:
        lines[0] += f"; {m2.high + g1.high:,} of the kernel image, {m2.decoys + g1.decoys:,} not counted"
    if m2.counted is None or g1.counted is None:
        lines.append("            this kernel counts none in /proc/vmstat")
    else:
        slack = max(m2.slack, g1.slack)
        agree = "agrees" if m2.agree and g1.agree else "DISAGREES"
        within = f" (within {slack:,}, in the margins)" if slack else ""
        lines.append(f"            {m2.counted:,} x 2M, {g1.counted:,} x 1G counted by /proc/vmstat: {agree}{within}")
    return lines
