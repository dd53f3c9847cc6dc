"""Rows of measures as plain text: what became of the map, then what that took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analyze.words.terminal import COLUMNS, clean, wrapped
from replay.costs import Costs
from replay.measures import COST, MAP
from replay.pricing_text import pricing_lines
from replay.side_by_side import Row

__all__ = ["Group", "priced_rows", "saved_by_user_table", "tables"]

GAP = 2
WIDEST_LABEL = 26

_LEFT_OUT = ("idle_pages_mean",)
"""Measures that JSON and CSV have, and for which a line has no room."""


@dataclass(frozen=True)
class Group:
    """Lines of a table that belong together: a heading ("" for none), and what each line is called."""

    heading: str
    labels: Sequence[str]
    rows: Sequence[Row]


def tables(groups: Sequence[Group], against: str) -> list[str]:
    """Two tables, each with a line a row; `against`: the policy that savings are held against."""
    first, *others = MAP
    of_map = [(first.head, [first.of(row.result).text for g in groups for row in g.rows])]
    of_map.append((("saved of", clean(against, 12)), [row.saved[first.key].text for g in groups for row in g.rows]))
    of_map += [(measure.head, [measure.of(row.result).text for g in groups for row in g.rows]) for measure in others]
    cost = [
        (measure.head, [measure.of(row.result).text for g in groups for row in g.rows])
        for measure in COST
        if measure.key not in _LEFT_OUT
    ]
    return [*_table(groups, of_map), "", *_table(groups, cost)]


def saved_by_user_table(groups: Sequence[Group], against: str) -> list[str]:
    """How many 2M frames less each user split first, the users that differ anywhere."""
    rows = [row for group in groups for row in group.rows]
    users = dict.fromkeys(user for row in rows for user in row.saved_by_user)
    columns = [
        ((clean(user, 12),), [row.saved_by_user[user].text if user in row.saved_by_user else "-" for row in rows])
        for user in users
        if any(row.saved_by_user[user].hi or row.saved_by_user[user].lo for row in rows if user in row.saved_by_user)
    ]
    if not columns:
        return []
    title = f"2M frames less that each user split first, against {clean(against, 40)}:"
    return ["", *wrapped(title), *_table(groups, columns)]


def _table(groups: Sequence[Group], columns: Sequence[tuple[tuple[str, ...], list[str]]]) -> list[str]:
    labels = [clean(label, COLUMNS - 4) for group in groups for label in group.labels]
    widths = [max(len(part) for part in (*head, *cells)) for head, cells in columns]
    room = COLUMNS - sum(width + GAP for width in widths)
    if room < 0:  # only for a row of users that all have wide intervals
        half = (len(columns) + 1) // 2
        return [*_table(groups, columns[:half]), "", *_table(groups, columns[half:])]
    width = min(max(map(len, labels), default=0), max(room, 0), WIDEST_LABEL)
    height = max(len(head) for head, _ in columns)
    padded = [("",) * (height - len(head)) + tuple(head) for head, _ in columns]
    lines = [_line("", [head[i] for head in padded], width, widths) for i in range(height)]
    lines.append("-" * max(map(len, lines)))
    at = 0
    for group in groups:
        if group.heading:
            lines += wrapped(group.heading, hang=2)
        for label in labels[at : at + len(group.rows)]:
            cells = [cells[at] for _, cells in columns]
            if len(label) > width:
                lines.append(label)
            lines.append(_line(label if len(label) <= width else "", cells, width, widths))
            at += 1
    return lines


def _line(label: str, cells: Sequence[str], width: int, widths: Sequence[int]) -> str:
    gap = " " * GAP
    text = "".join(gap + cell.rjust(one) for cell, one in zip(cells, widths, strict=True))
    return f"{label:<{width}}{text}".rstrip()


def priced_rows(groups: Sequence[Group], costs: Costs | None, against: str) -> list[str]:
    """Prices of all rows; nothing where there are no costs."""
    if costs is None:
        return []
    named = [
        (" ".join((row.trace, label.strip())) if len(groups) > 1 else label.strip(), row)
        for group in groups
        for label, row in zip(group.labels, group.rows, strict=True)
    ]
    prices = [(name, row.priced) for name, row in named if row.priced is not None]
    emulated = any(row.result.emulated for _, row in named)
    return pricing_lines(costs, prices, against, emulated=emulated)
