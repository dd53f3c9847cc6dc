"""The report as text for a mailing list: ASCII, under 80 columns, nothing but lines."""

from __future__ import annotations

from analyze.analysis import Analysis
from analyze.health import Health
from analyze.plots.style import USERS
from analyze.report.answer import answer, mapped_pages, provenance, subtitle, title
from analyze.report.checks import checks, limits, verdict
from analyze.report.keepers import healing_sentences, states_text
from analyze.report.page import NO_NAME, Check
from analyze.report.pages import page_sentences
from analyze.report.users import users
from analyze.who import Who
from analyze.words.health import health_lines, verdict_lines
from analyze.words.numbers import as_ascii, memory, share
from analyze.words.terminal import clean, table, wrapped
from collect import __version__
from collect.schema import LEAF_PAGES, Level

__all__ = ["text_report"]

MAX_NAMES = 5
"""Names listed of each user."""

_MARKS = {"good": "[ok]", "bad": "[!!]", "none": "[--]"}
_LONGEST = 600
"""Characters of a paragraph that can hold words of a trace."""


def text_report(analysis: Analysis, health: Health, kept: Who) -> list[str]:
    """Lines: health, answer, what may be concluded, levels, who, what keeps frames split, checks, limits, provenance."""
    split_by = users(analysis)
    manifest = analysis.trace.manifest
    lines = [*_paragraph(f"{title(analysis)}: {subtitle(analysis)}"), *verdict_lines(health), ""]
    for sentence in answer(analysis, split_by):
        lines += _paragraph(sentence)
    lines += ["", "What may be concluded", *health_lines(health), ""]
    lines += ["Memory by the size of the entries that map it", *_levels(analysis), ""]
    lines += ["Who split it", *_users(analysis), ""]
    lines += ["What keeps it split", *_paragraph(states_text(kept), 2)]
    for sentence in healing_sentences(kept):
        lines += _paragraph(f"- {sentence}", 2, 2)
    if analysis.pages is not None:
        lines += ["", "Page events"]
        for sentence in page_sentences(analysis.pages):
            lines += _paragraph(sentence, 2)
    lines += ["", "Checks"]
    for check in [verdict(analysis.verification), *checks(analysis.verification, manifest)]:
        lines += _check(check)
    lines += ["", "What the numbers do not say"]
    for limit in limits(analysis.verification, manifest):
        lines += _paragraph(f"- {limit}", 2, 2)
    lines += ["", "Where this comes from"]
    for key, value in provenance(analysis):
        lines += _paragraph(f"{key:<11} {value}", 2, 12)
    return [*lines, "", f"Written by directmap {__version__}: directmap-analyze summary"]


def _paragraph(text: str, indent: int = 0, hang: int = 0) -> list[str]:
    return wrapped(clean(as_ascii(text), _LONGEST), indent, hang)


def _levels(analysis: Analysis) -> list[str]:
    rows_of = [(row, max(1, mapped_pages(row))) for row in (analysis.rebuilt.levels.iloc[i] for i in (0, -1))]
    columns = {"1G": ("g1", Level.G1), "2M": ("m2", Level.M2), "4K": ("k4", Level.K4)}
    rows = []
    for name, (column, level) in columns.items():
        cells = [name]
        for row, total in rows_of:
            pages = int(row[column]) * LEAF_PAGES[level]
            cells += [f"{int(row[column]):,}", as_ascii(memory(pages)), as_ascii(share(pages, total))]
        rows.append(cells)
    return table(["", "start", "memory", "share", "end", "memory", "share"], rows)


def _users(analysis: Analysis) -> list[str]:
    rows = []
    for user in users(analysis):
        rows.append([USERS[user.key].label, f"{user.n_2m:,}", f"{user.n_1g:,}", user.held])
        if user.unnamed:
            rows[-1][0] += f" ({clean(as_ascii(user.rows[0].process), 30)})"
            continue
        for row in user.rows[:MAX_NAMES]:
            name = "(no name)" if row.name == NO_NAME else clean(row.name, 30)
            process = clean(as_ascii(row.process), 30)
            rows.append([f"  {name} ({process})", f"{row.n_2m:,}", f"{row.n_1g:,}", row.held])
        left = len(user.rows) - MAX_NAMES
        if left > 0 or user.more:
            rows.append(["  and more", "", "", ""])
    if not rows:
        return ["  nobody: no entry was split while this was recorded"]
    return table(["user, name (process)", "2M split", "1G split", "special pages"], rows)


def _check(check: Check) -> list[str]:
    return _paragraph(f"{_MARKS[check.state]} {check.name}: {check.text}", 2, 5)
