"""Page events for the report: how many, of which orders, flags and lifetimes, and what free memory was made of."""

from __future__ import annotations

from analyze.analysis import Analysis
from analyze.pages.events import PageEvents
from analyze.report.page import PagesView, Picture, TableView, plain
from analyze.words.numbers import count, memory, number, span

__all__ = ["page_sentences", "page_tables", "pages_view"]

MAX_ROWS = 8
"""Rows of each table; `directmap-analyze pages` has all."""

_COLUMNS = {
    "allocations": "allocations",
    "pages": "pages",
    "freed_pages": "freed",
    "replaced_pages": "replaced",
    "live_pages": "live at the end",
}
"""Replaced: allocated anew without a free that was seen; left out where there are none."""
_TITLES = {"order": "order", "migratetype": "migratetype", "gfp": "flags", "scope": "purpose"}


def pages_view(analysis: Analysis, free: Picture | None) -> PagesView | None:
    """None where the trace holds neither page events nor free blocks."""
    found = analysis.pages
    if found is None:
        return PagesView(["No page events were recorded."], [], free) if free else None
    return PagesView(page_sentences(found), page_tables(found), free)


def page_sentences(found: PageEvents) -> list[str]:
    """What was recorded, what is left of it, and what puts that in doubt: a sentence each."""
    allocations, frees = int(found.orders["allocations"].sum()), int(found.orders["frees"].sum())
    live = int(found.classes["live_pages"].sum())
    scope = "of all pages" if found.recorded == "all" else "of pages of regions and of splits alone"
    said = [
        f"{count(found.n_events, 'page event')} {scope}: {count(allocations, 'allocation')}, {count(frees, 'free')}; "
        f"{count(live, 'page')} ({memory(live)}) that were allocated meanwhile are still so at the end."
    ]
    if found.sample > 1:
        estimate, low, high = found.scaled()
        said.append(
            f"One block of 512 pages in {found.sample} was recorded: there were about {number(estimate)} events outside "
            f"of regions ({number(low)} to {number(high)} with 95 % confidence)."
        )
    if found.whole and len(found.frames):
        unmovable = found.scattered("unmovable")
        frames, pages = int(unmovable["frames"].sum()), int(unmovable["pages"].sum())
        said.append(
            f"Of them {count(pages, 'page')} cannot be moved, and stand in {count(frames, 'frame')} of 2M; "
            f"{number(-(-pages // 512))} would have been enough."
        )
    if found.emulated:
        said.append("The CPUs were emulated, so lifetimes and rates are left out.")
    return said + [f"{plain(text[:1].upper() + text[1:], 200)}." for text in [*found.notes(), *found.doubts()]]


def page_tables(found: PageEvents) -> list[TableView]:
    """By order, migratetype, flags and scope, and by lifetime where times mean something."""
    kinds = [kind for kind in _TITLES if kind != "scope" or found.by("scope")["scope"].any()]
    tables = [_by(found, kind) for kind in kinds if len(found.classes)]
    if not found.emulated and len(found.classes):
        rows = found.lifetimes()
        lived = rows[(rows["freed"] > 0) | (rows["live"] > 0)]
        tables.append(
            TableView(
                ["age of pages, below", "freed", "live at the end"],
                [
                    [span(below), number(freed), number(live)]
                    for below, freed, live in lived[["below_ns", "freed", "live"]].itertuples(index=False)
                ],
            )
        )
    return tables


def _by(found: PageEvents, kind: str) -> TableView:
    rows = found.by(kind)
    columns = [name for name in _COLUMNS if name != "replaced_pages" or rows[name].any()]
    shown = [
        [plain(found.name(kind, int(code)).replace("|", " | "), 200), *(number(int(n)) for n in numbers)]
        for code, *numbers in rows[[kind, *columns]].head(12 if kind == "order" else MAX_ROWS).itertuples(index=False)
    ]
    left = len(rows) - len(shown)
    if left > 0:
        shown.append([f"and {left} more", *[""] * len(columns)])
    return TableView([_TITLES[kind], *(_COLUMNS[name] for name in columns)], shown)
