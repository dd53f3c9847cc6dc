"""`directmap-analyze who`: who splits the direct map, who keeps it split, and what would have to go for it to heal."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analyze.arguments import add_json, add_top, add_trace
from analyze.when import add_when, within
from analyze.words.terminal import COLUMNS, clean, counted, wrapped
from analyze.words.who import cause_text, elsewhere_text, records, stack_lines
from collect.command_line import Subparsers, add_command
from collect.schema import HUGE_FRAME_PAGES

if TYPE_CHECKING:
    from analyze.who import Who

__all__ = ["add_to"]

TOP = 10
AXES = ("user", "name", "process", "stack", "region")


EXAMPLES = (
    ("directmap-analyze who my-trace", "at the end of the recording, by module, program or user"),
    ("directmap-analyze who my-trace --at 50% --by process", "half-way through, by process"),
    ("directmap-analyze who my-trace --by stack --top 30", "by call stack, thirty lines of each table"),
    ("directmap-analyze who my-trace --json", "the same for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "who", "who splits the map, who keeps it split, and what would heal it", EXAMPLES)
    add_trace(parser)
    add_when(parser, "--at", "the moment", "end")
    parser.add_argument("--by", choices=AXES, default="name", help="what makes two pages one cause (default: name)")
    add_top(parser, TOP, "lines of each table")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.attribute import attribute
    from analyze.causes import By
    from analyze.doubts import clock
    from analyze.history import History
    from analyze.reconstruct import rebuild
    from analyze.trust import trust
    from analyze.verify import verify
    from analyze.who import to_json, who
    from collect.trace import open_trace

    trace = open_trace(options.directory)
    rebuilt = rebuild(trace)
    believed = trust(verify(trace, rebuilt))
    attribution = attribute(trace, rebuilt)
    start_ns, moment, under_way = trace.manifest["ts_start_ns"], "the end of the recording", 0
    if str(options.at) == "end":
        found = who(rebuilt, attribution, By(options.by))
    else:
        history = History(rebuilt.course)
        ts_ns = within(options.at, history.span, "--at", options.directory)
        found = who(rebuilt, attribution, By(options.by), state=history.state_at(ts_ns), ts_ns=ts_ns)
        under_way = len(history.under_way(ts_ns))
        moment = f"{history.span.seconds(ts_ns):.3f} s of {history.span.seconds(history.span.last_ns):.3f} s"
    if options.json:
        print(json.dumps({"trust": believed.to_json(), **to_json(found, start_ns)}, indent=1, allow_nan=False))
        return 0
    release = clean(trace.manifest["kernel"].get("release", "?"), 30)
    head = [f"{clean(options.directory.absolute().name, 40)}, Linux {release}, at {moment}"]
    head += [f"  state    {believed.map}", f"  who      {believed.who}"]
    if under_way:
        head.append(f"  calls    {under_way:,} under way, which may have changed some of their pages already")
    head += clock(trace)
    print("\n".join(line[:COLUMNS].rstrip() for line in [*head, *_lines(found, start_ns, options.top)]))
    return 0


def _lines(found: Who, start_ns: int, top: int) -> list[str]:
    return [
        *_split_lines(found, top),
        *_now_lines(found),
        *_cause_lines(found, start_ns, top),
        *_healing_lines(found, top),
        *_scatter_lines(found),
    ]


def _whole_stack(found: Who, row: dict[str, Any], most: int) -> list[str]:
    """Below a line whose cause is a stack, cut to `most` characters: stacks begin alike, and differ where they are cut."""
    return stack_lines(row["user"], row["cause"], most) if found.by == "stack" else []


def _split_lines(found: Who, top: int) -> list[str]:
    table = found.split_by
    own, others = table[table["group"] == "own"], table[table["group"] != "own"]
    lines = [
        "",
        f"Split {'while recording' if found.at_end else 'until then'}: {int(table['n_2m'].sum()):,} entries of 2M, {int(table['n_1g'].sum()):,} of 1G",
        *wrapped(
            "What became of the 2M frames: pages keep them split (kept); no page does, but some lack the global bit (lack G; "
            "below and in JSON: residue); all 512 pages are alike; or none of these: whole again, or split anew by somebody else.",
            2,
        ),
        "      2M    1G            kept  lack G  alike  by",
    ]
    names = ("n_2m", "n_1g", "kept", "residue", "alike")

    def line(counts: Sequence[int], who: str) -> str:
        return "  {:>6,} {:>5,} {:>15,} {:>7,} {:>6,}  ".format(*counts) + who

    for row in records(others.head(top)):
        lines.append(line([row[name] for name in names], cause_text(row["user"], row["cause"], 32)))
        lines += _whole_stack(found, row, 32)
    rest = others.iloc[top:]
    if len(rest):
        lines.append(line([int(rest[name].sum()) for name in names], f"and {len(rest):,} more"))
    return [*lines, line([int(own[name].sum()) for name in names], "our recorder, in no line above")]


def _now_lines(found: Who) -> list[str]:
    frames = found.frames
    attaching = int((frames["split_name"] != "").sum())
    before = int((frames["split_row"] < 0).sum()) - attaching
    live = found.special[~found.special["residue"] & found.special["kept"]]
    n = found.n_frames
    return [
        "",
        f"Split {'now' if found.at_end else 'then'}: {counted(len(frames), 'frame')} of 2M ({before:,} were before we came, {attaching:,} came while we attached)",
        f"  {n('kept'):>6,}  kept by {counted(len(live), 'page')} unlike the rest of their frame",
        f"  {n('residue'):>6,}  kept by no page, some lack G (residue), which default leaves off",
        f"  {n('alike'):>6,}  kept by no page: all 512 alike, one entry could map them as they are",
        f"  {n('never_whole'):>6,}  never one entry: memory ends inside, or the first 2M",
    ]


def _cause_lines(found: Who, start_ns: int, top: int) -> list[str]:
    lines = ["", "Who keeps frames split (a page goes to the change that touched it last)"]
    lines.append("  alone: frames that nothing else keeps")
    lines.append("  frames  alone   pages  since s  who")
    others = found.causes[found.causes["group"] != "own"]
    for row in records(others.head(top)):
        since = f"{(row['since_ns'] - start_ns) / 1e9:.1f}" if row["since_ns"] >= 0 else "before"
        who = cause_text(row["user"], row["cause"], 42)
        lines.append(f"  {row['frames']:>6,} {row['alone_frames']:>6,} {row['pages']:>7,} {since:>8}  {who}")
        lines += _whole_stack(found, row, 42)
    if len(others) > top:
        lines.append(f"          and {len(others) - top:,} more")
    frames, alone = found.kept_by("own")
    pages = int(found.causes.loc[found.causes["group"] == "own", "pages"].sum())
    return [*lines, f"  {frames:>6,} {alone:>6,} {pages:>7,}           our recorder, and what came while it attached"]


def _healing_lines(found: Who, top: int) -> list[str]:
    steps = found.steps
    lines = ["", "What would heal most if it went away, one after the other (greedy)"]
    if found.own_first:
        lines.append(f"  {'':>6}  first our recorder, which alone keeps {counted(found.own_first, 'frame')}")
    for step in records(steps.head(top)):
        causes = records(found.causes.iloc[list(step["causes"])])
        pages = int(step["pages"])
        this, verb = ("this", "keeps") if pages == 1 else ("these", "keep")
        said = f"{this} {counted(pages, 'page')} {verb} {counted(int(step['healed']), 'frame')} in 4K"
        if step["pages_of_earlier"]:
            said += f", with {int(step['pages_of_earlier']):,} above"
        most = 66 - len(said)
        lines.append(f"  {step['total']:>6,}  {said}: {cause_text(causes[0]['user'], causes[0]['cause'], most)}")
        lines += _whole_stack(found, causes[0], most)
        for row in causes[1:3]:
            lines.append(f"          and {cause_text(row['user'], row['cause'], 60)}")
            lines += _whole_stack(found, row, 60)
        if len(causes) > 3:
            lines.append(f"          and {len(causes) - 3:,} more")
    if len(steps) > top:
        lines.append(f"  {int(steps['total'].iloc[-1]):>6,}  after {counted(len(steps), 'step')}")
    if not len(steps):
        lines.append(f"  {0:>6}  nothing that we saw made keeps a frame that would heal without it")
    for group, text in (
        ("fixed", "of the kernel itself (its image, KFENCE)"),
        ("unknown", "made before the recording, by whom is not known"),
    ):
        frames, alone = found.kept_by(group)
        if frames:
            verb = "is" if frames == 1 else "are"
            said = f"Not in this list: {counted(frames, 'frame')} {verb} kept by pages {text}; {alone:,} of them by nothing else"
            lines += wrapped(said, 2, 2)
    free = found.n_frames("residue") + found.n_frames("alike")
    return [
        *lines,
        *wrapped(
            "Healed means kept by no page. To be one 2M entry again a frame must still be put together by the kernel, and none "
            "from 5.10 to 7.3 does that by itself (CPA_COLLAPSE, since 6.15, visits the range of set_memory_rox, not its "
            "alias in the direct map); pages that lack G must get it back first (set_direct_map_default_noflush sets P and "
            f"RW only). The same goes for the {counted(free, 'frame')} that no page keeps now, "
            f"{found.n_frames('residue'):,} of them with pages that lack G.",
            2,
        ),
    ]


def _scatter_lines(found: Who) -> list[str]:
    every = found.scatter
    lines = [
        "",
        f"Scattered or dense: {counted(every.pages, 'special page')} in {counted(every.frames, 'frame')}; "
        f"{every.least:,} would be enough",
    ]
    live = found.special[~found.special["residue"].astype(bool)]
    if note := elsewhere_text(found, live).strip():
        lines.append(f"  {note}")
    if not every.pages:
        return lines
    full = 100 * every.pages / (every.frames * HUGE_FRAME_PAGES)
    lines.append(
        f"  They fill {full:.1f} % of these frames, in {counted(every.gigas, 'range')} of 1G. Frames by special pages:"
    )
    by_class = zip(("1", "2-7", "8-63", "64-511", "all 512"), every.by_fullness, strict=True)
    lines.append("  " + ", ".join(f"{name}: {n:,}" for name, n in by_class))
    lines.append("   pages  frames  enough  1G  median  most  user")
    for user, part in found.scatter_by_user.items():
        lines.append(
            f"  {part.pages:>6,} {part.frames:>7,} {part.least:>7,} {part.gigas:>3,} {part.median:>7.1f} {part.most:>5,}"
            f"  {cause_text(user, '', 30)}"
        )
    return lines
