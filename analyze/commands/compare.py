"""`directmap-analyze compare`: two captures on the same axes, and whose doing the difference is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from analyze.arguments import add_json, add_top
from analyze.words.terminal import COLUMNS, clean
from analyze.words.who import cause_text, records
from collect.command_line import Subparsers, add_command

if TYPE_CHECKING:
    from analyze.comparison import Comparison

__all__ = ["add_to"]

TOP = 15
WORDS = 18


EXAMPLES = (
    ("directmap-analyze compare before after", "what speaks against comparing them comes first"),
    ("directmap-analyze compare before after --top 30", "with thirty causes"),
    ("directmap-analyze compare before after --json", "the same for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(
        commands, "compare", "two captures on the same axes, and whose doing the difference is", EXAMPLES
    )
    parser.add_argument("a", type=Path, metavar="A", help="one trace")
    parser.add_argument("b", type=Path, metavar="B", help="another trace")
    add_top(parser, TOP, "causes that are printed")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from analyze.comparison import compare_captures

    found = compare_captures(options.a, options.b)
    if options.json:
        print(json.dumps(found.to_json(), indent=1, allow_nan=False))
    else:
        print("\n".join(line[:COLUMNS].rstrip() for line in _lines(found, options.top)))
    return 0


def _lines(found: Comparison, top: int) -> list[str]:
    return [
        *_fact_lines(found),
        *_number_lines(found),
        *_user_lines(found),
        *_cause_lines(found, top),
    ]


def _fact_lines(found: Comparison) -> list[str]:
    from analyze.comparison import FACTS

    a, b = found.a, found.b
    lines = [
        f"A  {clean(a.name, 70)}",
        f"   state {a.trust.map}",
        f"B  {clean(b.name, 70)}",
        f"   state {b.trust.map}",
        "",
    ]
    same = []
    for row in records(found.facts):
        what = FACTS[row["fact"]]
        first, second = _value(row["a"]), _value(row["b"])
        if row["fact"] == "seconds" and (a.seconds is None or b.seconds is None):
            continue
        if row["same"]:
            same.append(f"{what} {first}")
        elif max(len(first), len(second)) <= 26:
            lines.append(f"  {what:<22} {first:<27}{second}")
        else:
            lines += [f"  {what:<22} A: {first}", f"  {'':<22} B: {second}"]
    lines += _wrapped("Alike: " + "; ".join(same) + "." if same else "Alike: nothing.")
    lines += ["", "What speaks against comparing them as they stand:"]
    for doubt in found.doubts or ["nothing that the traces know of."]:
        lines += _wrapped("- " + clean(doubt, 400), "  ")
    return lines


def _number_lines(found: Comparison) -> list[str]:
    lines = ["", f"  {'':<38}{'A':>12}{'B':>12}{'B - A':>13}"]
    for row in records(found.numbers):
        lines.append(f"  {row['what']:<38}{_count(row['a']):>12}{_count(row['b']):>12}{_signed(row['difference']):>13}")
    return lines


def _user_lines(found: Comparison) -> list[str]:
    lines = [
        "",
        "By user: 2M entries split, regions asked for, splits per 100 of them, and pages",
        "  that keep frames split at the end",
    ]
    lines.append("                  2M splits          asked for       per 100      keeping pages")
    lines.append("                  A     B   B - A      A      B      A      B       A       B")
    for row in records(found.users):
        asked = [f"{row[f'asked_{side}']:,}" if row[f"asked_{side}"] >= 0 else "-" for side in "ab"]
        per = [
            f"{row[f'per_100_{side}']:.1f}" if row[f"per_100_{side}"] == row[f"per_100_{side}"] else "-"
            for side in "ab"
        ]
        lines.append(
            f"  {cause_text(row['user'], '', 13):<13}{row['n_2m_a']:>5,} {row['n_2m_b']:>5,} {_signed(row['n_2m_difference']):>7}"
            f" {asked[0]:>6} {asked[1]:>6} {per[0]:>6} {per[1]:>6} {row['pages_a']:>7,} {row['pages_b']:>7,}"
        )
    return lines


def _cause_lines(found: Comparison, top: int) -> list[str]:
    differ = found.causes[found.causes["change"] != "same"]
    total = int(found.causes["n_2m_difference"].sum())
    lines = ["", f"Whose doing the difference is ({_signed(total)} splits of 2M in all), largest first"]
    by_user = [
        f"{cause_text(row['user'], '', 20)} {_signed(row['n_2m_difference'])}"
        for row in records(found.users)
        if row["n_2m_difference"]
    ]
    lines += _wrapped(
        "B - A is made of: " + ", ".join(by_user) + "." if by_user else "No user split more or less.", "  "
    )
    lines.append("  change 2M splits A      B  keeping pages A    B  who")
    for row in records(differ.head(top)):
        lines.append(
            f"  {row['change']:<6} {row['n_2m_a']:>11,} {row['n_2m_b']:>6,} {row['pages_a']:>13,} {row['pages_b']:>6,}"
            f"  {cause_text(row['user'], row['cause'], 28)}"
        )
    rest = differ.iloc[top:]
    if len(rest):
        counts = {name: int((rest["change"] == name).sum()) for name in ("new", "gone", "more", "less")}
        said = " ".join(f"{n:,} {name}" for name, n in counts.items() if n)
        sums = [int(rest[name].sum()) for name in ("n_2m_a", "n_2m_b", "pages_a", "pages_b")]
        lines.append(f"  {'rest':<6} {sums[0]:>11,} {sums[1]:>6,} {sums[2]:>13,} {sums[3]:>6,}  {said}")
    if not len(differ):
        lines.append("  nobody's: every cause has the same counts in both")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return clean(", ".join(map(str, value)) or "none", 400)
    if value is None:
        return "none"
    return _count(value) if isinstance(value, int | float) else clean(value, 400)


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _signed(value: float) -> str:
    text = _count(abs(value))
    return f"+{text}" if value > 0 else f"-{text}" if value < 0 else "0"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return wrap(text, COLUMNS, initial_indent=indent, subsequent_indent=indent + "  ")
