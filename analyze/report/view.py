"""What a report says of one trace: the answer in words, the checks, the pictures, who did it, and what is not said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from markupsafe import Markup
from matplotlib.figure import Figure

from analyze.analysis import Analysis
from analyze.health import Health
from analyze.plots.style import inline_svg
from analyze.report.answer import answer, provenance, subtitle, title
from analyze.report.checks import checks, limits, verdict
from analyze.report.health import health_view
from analyze.report.keepers import keepers_view
from analyze.report.memory_map import map_view
from analyze.report.page import Picture, TraceView, UserView
from analyze.report.pages import pages_view
from analyze.report.users import stacks, users_note
from analyze.who import Who

__all__ = ["view"]


def view(
    analysis: Analysis,
    health: Health,
    kept: Who,
    split_by: Sequence[UserView],
    drawn: dict[str, Figure],
    *,
    slug: str = "trace",
    files: dict[str, list[str]] | None = None,
) -> TraceView:
    """The view of a trace for a page.

    Args:
        health, kept: of the same trace.
        split_by: what `analyze.report.users.users` returned.
        drawn: what `figures` returned.
        slug: ASCII word that tells this trace from others on the same page.
        files: for each picture, the files beside the page that hold it.
    """
    files = files or {}
    manifest = analysis.trace.manifest
    happened, left = answer(analysis, split_by)
    free = (
        Picture(
            Markup(inline_svg(drawn["free"], f"{slug}-free", "Free memory by the size of the free blocks, over time.")),
            "From /proc/buddyinfo, once a second: a cache that takes 2M at once finds them only where a whole 2M frame is free, or can be emptied.",
            files.get("free", ()),
        )
        if "free" in drawn
        else None
    )  # fmt: skip
    return TraceView(
        slug=slug,
        title=title(analysis),
        subtitle=subtitle(analysis),
        happened=happened,
        left=left,
        health=health_view(health),
        kept=keepers_view(kept),
        verdict=verdict(analysis.verification),
        checks=checks(analysis.verification, manifest),
        levels=Picture(
            Markup(inline_svg(drawn["levels"], f"{slug}-levels", f"Memory by level over time, and who split it. {happened}")),
            "Above: how much physical memory 1G, 2M and 4K entries map. Below, on the same time axis: every split, by whom.",
            files.get("levels", ()),
        ),
        map=replace(map_view(analysis, kept), files=files.get("map", ())),
        overview=files.get("overview", ()),
        users=split_by,
        pages=pages_view(analysis, free),
        users_note=users_note(kept),
        stacks=stacks(analysis),
        limits=limits(analysis.verification, manifest),
        provenance=provenance(analysis),
    )  # fmt: skip
