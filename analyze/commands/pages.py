"""`directmap-analyze pages`: page allocations by order, flags, migratetype, lifetime; free blocks; what is scattered."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from analyze.arguments import add_json, add_trace
from analyze.words.numbers import as_ascii, span
from analyze.words.terminal import clean, counted, table, wrapped
from collect.command_line import Subparsers, add_command

if TYPE_CHECKING:
    from analyze.pages.events import PageEvents
    from analyze.pages.free_blocks import FreeBlocks

__all__ = ["add_to", "page_lines"]

MAX_GFP = 12
_WIDE = 30
_SHOWN = {
    "allocations": "allocations",
    "pages": "pages",
    "freed_pages": "freed",
    "replaced_pages": "replaced",
    "live_pages": "live",
}


EXAMPLES = (
    ("directmap-analyze pages my-trace", "of a recording with --pages all: of the whole machine"),
    ("directmap-analyze pages my-trace --json", "the same for programs, with intervals of time"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands, "pages", "page events: orders, flags, lifetimes, free blocks, what is scattered", EXAMPLES
    )
    add_trace(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.counter_series import CounterSeries
    from analyze.pages.events import page_events
    from analyze.pages.free_blocks import free_blocks
    from collect.trace import open_trace

    trace = open_trace(options.directory)
    found = page_events(trace)
    zones = free_blocks(CounterSeries(trace))
    if options.json:
        print(
            json.dumps(
                {**found.to_json(), "free_blocks": [zone.to_json() for zone in zones]}, indent=1, allow_nan=False
            )
        )
    else:
        print("\n".join(page_lines(found, zones)))
    return 0


def page_lines(found: PageEvents, zones: list[FreeBlocks]) -> list[str]:
    """Under 80 columns, ASCII."""
    lines = _head(found)
    if len(found.classes):
        lines += _by(found, "order", 11)
        lines += _by(found, "migratetype", 11)
        lines += _by(found, "gfp", MAX_GFP)
        if found.by("scope")["scope"].any():
            lines += _by(found, "scope", MAX_GFP)
        lines += _lifetimes(found)
    if found.whole and len(found.frames):
        lines += ["", *_scattered(found)]
    lines += _consistency(found)
    for zone in zones:
        lines += ["", *_zone(zone)]
    return lines


def _head(found: PageEvents) -> list[str]:
    frees = int(found.orders["frees"].sum())
    allocations = int(found.orders["allocations"].sum())
    lines = [f"{counted(found.n_events, 'page event')}: {allocations:,} allocations, {frees:,} frees"]
    if found.recorded != "all":
        lines += wrapped("Only pages of regions and of splits were recorded (--pages all records every page).", 2)
    if found.emulated:
        lines.append("  emulated CPUs: no rates, no lifetimes")
    elif found.seconds > 0 and found.recorded == "all":
        scale = found.sample / found.seconds
        about = " (scaled up)" if found.sample > 1 else ""
        lines.append(
            f"  {allocations * scale:,.0f} allocations/s, {frees * scale:,.0f} frees/s{about}, over {found.seconds:.1f} s"
        )
    if found.sample > 1:
        estimate, low, high = found.scaled()
        lines.append(f"  about {estimate:,} events outside of regions ({low:,} to {high:,}, 95 %)")
    lines += [line for note in found.notes() for line in wrapped(note, 2, 2)]
    for doubt in found.doubts():
        lines += wrapped(f"! {clean(doubt, 200)}", 2, 2)
    return lines


def _by(found: PageEvents, kind: str, most: int) -> list[str]:
    rows = found.by(kind)
    columns = [name for name in _SHOWN if name != "replaced_pages" or rows[name].any()]
    shown, legend = [], []
    for code, *numbers in rows[[kind, *columns]].head(most).itertuples(index=False):
        name = found.name(kind, int(code))
        if kind == "gfp":  # too long for a column, and what tells two apart stands at its end
            legend += wrapped(f"{code:#x} {clean(name, 400).replace('|', ' | ')}", 2, 2) if len(name) > _WIDE else []
            name = name if len(name) <= _WIDE else f"{code:#x}"
        shown.append([clean(name, _WIDE), *(f"{n:,}" for n in numbers)])
    more = [f"  and {len(rows) - most:,} more"] if len(rows) > most else []
    return ["", *table([kind, *(_SHOWN[name] for name in columns)], shown), *more, *legend]


def _lifetimes(found: PageEvents) -> list[str]:
    if found.emulated:
        return []
    rows = found.lifetimes()
    kinds = [name for name in rows.columns if name not in ("below_ns", "freed", "live")]
    shown = [
        [
            f"< {as_ascii(span(int(row['below_ns'])))}",
            *(f"{int(row[name]):,}" for name in ["freed", *kinds[:3], "live"]),
        ]
        for _, row in rows.iterrows()
        if row["freed"] or row["live"]
    ]
    return ["", *table(["pages by age", "freed", *(f"of {name}"[:14] for name in kinds[:3]), "live still"], shown)]


def _scattered(found: PageEvents) -> list[str]:
    lines = ["Allocated while recording and live at the end, by 2M frame:"]
    for name in ("unmovable", "special"):
        rows = found.scattered(name)
        n = int(rows["frames"].sum())
        if not n:
            lines.append(f"  no {name} page")
            continue
        pages = int(rows["pages"].sum())
        lines.append(
            f"  {counted(pages, f'{name} page')} in {counted(n, 'frame')}, {100 * pages / (n * 512):.1f} % of them"
        )
        shown, low = [], 1
        for up_to, frames, of_them in rows.itertuples(index=False):
            shown.append(
                [
                    f"frames with {low} to {up_to}" if low < up_to else f"frames with {low}",
                    f"{frames:,}",
                    f"{of_them:,}",
                ]
            )
            low = up_to + 1
        lines += table([f"  {name} pages", "frames", "pages"], shown, indent=4)
    return lines


def _consistency(found: PageEvents) -> list[str]:
    again = int(found.orders["frees_again"].sum()), int(found.orders["allocated_again"].sum())
    return [
        "",
        "Consistency (events):",
        f"  {found.frees_unknown:>12,} frees of pages not seen before (from before the recording)",
        f"  {again[0]:>12,} frees of pages that were free",
        f"  {again[1]:>12,} allocations of pages that were allocated (replaced)",
        *([f"  {found.failed:>12,} allocations that failed"] if found.failed else []),
    ]


def _zone(zone: FreeBlocks) -> list[str]:
    orders = range(zone.blocks.shape[1])
    head = [f"node {zone.node} {zone.zone}", *(str(order) for order in orders)]
    rows = [
        [name, *(_short(int(n)) for n in blocks)]
        for name, blocks in (
            ("start", zone.blocks[0]),
            ("least", zone.blocks.min(axis=0)),
            ("end", zone.blocks[-1]),
        )
    ]
    share = zone.unusable(9)
    return [
        *table(head, rows),
        f"  free memory in blocks below 2M: {100 * share[0]:.1f} % at the start, {100 * share[-1]:.1f} % at the end",
    ]


def _short(n: int) -> str:
    return str(n) if n < 10_000 else f"{n / 1000:.0f}k" if n < 1_000_000 else f"{n / 1e6:.0f}M"
