"""Results as plain text, narrower than 80 columns."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from analyze.words.numbers import as_ascii
from analyze.words.terminal import COLUMNS, clean
from replay.caveats import PUBLISHED
from replay.costs import Costs
from replay.judgement import Judgement
from replay.judgement_words import happened, judged
from replay.measures import BASELINE
from replay.policies.base import Policy
from replay.pricing import priced
from replay.pricing_text import pricing_lines
from replay.results import Interval, PolicyResult

__all__ = ["WIDTH", "policies_json", "policies_table", "text_table"]

WIDTH = COLUMNS

_ROWS: list[tuple[str, Callable[[PolicyResult], Interval | str]]] = [
    ("2M frames split", lambda r: r.split_2m),
    ("  live at the end", lambda r: r.split_2m_live_end),
    ("  live at most", lambda r: r.split_2m_live_peak),
    ("1G entries split", lambda r: r.split_1g),
    ("large entries put back", lambda r: r.merges),
    ("leaf entries at the end", lambda r: r.leaf_entries_end),
    ("page-table pages, end", lambda r: r.page_table_pages_end),
    ("CPA calls", lambda r: r.cpa_calls),
    ("  page-table steps", lambda r: r.cpa_steps),
    ("TLB flushes, by splits", lambda r: r.tlb_flushes_split),
    ("  at the end of calls", lambda r: r.tlb_flushes_call),
    ("  of ranges", lambda r: r.tlb_flushes_ranged),
    ("idle pages, mean", lambda r: r.idle_pages_mean),
    ("  at most", lambda r: r.idle_pages_peak),
    ("  at the end", lambda r: r.idle_pages_end),
    ("pages unmapped by policy", lambda r: r.pages_unmapped),
    ("pages given back", lambda r: r.pages_released),
    ("refills", lambda r: ", ".join(f"{n.text} of order {order}" for order, n in r.refills.items()) or "0"),
    ("  that failed", lambda r: r.refill_failures),
    ("requests served", lambda r: f"{r.requests['served']:,}"),
    ("  left as recorded", lambda r: f"{r.requests['as_recorded']:,}"),
    ("  not served", lambda r: r.requests_not_served),
]


def text_table(results: Sequence[PolicyResult], costs: Costs | None = None, found: Judgement | None = None) -> str:
    """The answer, a column a policy (three abreast), what the numbers do not say, and what they cost if `costs` say so."""
    lines = _answer(found) if found is not None else []
    for at in range(0, len(results), 3):
        lines += [*_block(results[at : at + 3]), ""]
    lines += _notes(results, priced=costs is not None)
    if costs is not None:
        prices = [(result.policy, priced(result, results, costs)) for result in results]
        lines += pricing_lines(costs, prices, BASELINE, emulated=any(result.emulated for result in results))
    return "\n".join(lines) + "\n"


def _answer(found: Judgement) -> list[str]:
    lines: list[str] = []
    for sentence in (happened(found), judged(found)):
        lines += _wrap(as_ascii(sentence), "", "")
    return [*lines, ""]


def _block(results: Sequence[PolicyResult]) -> list[str]:
    measures = [_ROWS[0], *_by_user(results), *_ROWS[1:]]
    labels = max(len(label) for label, _ in measures)
    rows = [("", *(r.policy for r in results))]
    rows += [(label, *(_cell(value(r)) for r in results)) for label, value in measures]
    room = (WIDTH - labels) // len(results) - 2
    cells = [[_fitted(cell, room) for cell in row[1:]] for row in rows]
    widths = [max(len(part) for row in cells for part in row[i]) for i in range(len(results))]
    lines = []
    for row, parts in zip(rows, cells, strict=True):
        for i in range(max(len(part) for part in parts)):
            label = row[0] if i == 0 else ""
            text = [(part[i] if i < len(part) else "").rjust(width) for part, width in zip(parts, widths, strict=True)]
            lines.append("  ".join([label.ljust(labels), *text]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return lines


def _by_user(results: Sequence[PolicyResult]) -> list[tuple[str, Callable[[PolicyResult], Interval | str]]]:
    """A row a user whose changes split a frame first, under any of the policies."""
    users = dict.fromkeys(user for result in results for user in result.split_2m_by_user)
    nothing = Interval(0, 0)
    return [
        ("  first by " + user.removesuffix("'s request"), lambda r, user=user: r.split_2m_by_user.get(user, nothing))  # type: ignore[misc]
        for user in users
    ]


def _cell(value: Interval | str) -> str:
    return value.text if isinstance(value, Interval) else value


def _fitted(cell: str, room: int) -> list[str]:
    """Lines of a cell; an interval that is too wide breaks after its dash."""
    return textwrap.wrap(cell if len(cell) <= room else re.sub(r"(?<=\d)-(?=\d)", "- ", cell), room) or [""]


def _notes(results: Sequence[PolicyResult], *, priced: bool) -> list[str]:
    """`priced`: who disagrees is told with the prices."""
    lines: list[str] = []
    first = results[0] if results else None
    if first is not None:
        kernel = first.provenance.get("kernel", "?")
        lines += _wrap(f"Recorded kernel: {kernel}. a-b: the trace leaves open where between a and b.", "", "")
        users = ", ".join(f"{user} {n:,}" for user, n in first.requests_by_user.items())
        lines += _wrap(f"Requests by user: {users or 'none'}.", "", "")
    shared = _shared([r.caveats for r in results])
    for text in shared:
        if not (priced and text == PUBLISHED):
            lines += _wrap(text, "- ", "  ")
    for result in results:
        own = [text for text in result.caveats if text not in shared]
        if own or result.narrow:
            lines += ["", f"{result.policy}: {result.title}"]
            for text in own:
                lines += _wrap(text, "- ", "  ")
            for text in result.narrow:
                lines += _wrap(f"To narrow it: {text}", "- ", "  ")
    return lines


def _shared(lists: Sequence[list[str]]) -> list[str]:
    return [text for text in lists[0] if all(text in other for other in lists)] if lists else []


def _wrap(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(clean(text, 1000), WIDTH, initial_indent=first, subsequent_indent=rest)


def policies_table() -> str:
    """Every policy with its parameters: name=default, what it may be, what it means, and where that comes from."""
    from replay.policies.choose import known
    from replay.policies.eager_merge import EagerMerge

    lines: list[str] = []
    for policy in known().values():
        lines += _wrap(f"{policy.name}: {policy.title}", "", "    ") + _parameters(policy)
    lines += [
        "",
        *_wrap(
            "Behind any of them, +merge: eager merge on top (RFC 2022); its parameters are set as merge.PARAMETER=VALUE.",
            "",
            "",
        ),
    ]
    return "\n".join(lines + _parameters(EagerMerge)) + "\n"


def policies_json() -> list[dict[str, Any]]:
    """The same for programs."""
    from replay.policies.choose import known

    return [
        {
            "name": name,
            "title": policy.title,
            "parameters": {key: dataclasses.asdict(parameter) for key, parameter in policy.parameters.items()},
        }
        for name, policy in known().items()
    ]


def _parameters(policy: type[Policy]) -> list[str]:
    lines: list[str] = []
    for name, parameter in policy.parameters.items():
        lines.append(f"    {name}={parameter.default}  [{parameter.values}]")
        lines += _wrap(parameter.meaning, "        ", "        ")
    return lines
