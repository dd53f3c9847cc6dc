"""What keeps frames in 4K entries, and what would heal most, in words and rows of a table."""

from __future__ import annotations

from analyze.attribute import BEFORE
from analyze.before_start import ATTACHING
from analyze.causes import EARLIER
from analyze.plots.style import USERS
from analyze.report.page import KeeperRow, KeepersView, plain
from analyze.who import Who
from analyze.words.numbers import count, number
from analyze.words.who import elsewhere, records

__all__ = ["MAX_CAUSES", "MAX_STEPS", "cause_text", "healing_sentences", "keepers_view", "states_text"]

OWN = "our recorder, and what came while it attached"
MAX_CAUSES = 10
MAX_STEPS = 8


def states_text(found: Who) -> str:
    """How many frames are split, and why each of them is, in one sentence."""
    n = found.n_frames
    special = found.special[~found.special["residue"] & found.special["kept"]]
    parts = [
        f"{number(n('kept'))} are kept so by {count(len(special), 'page')} unlike the rest of their frame",
        f"{number(n('residue'))} by no page, but some lack the global bit (G)",
        f"{number(n('alike'))} by no page: one entry could map them as they are",
        f"{number(n('never_whole'))} never were one entry{_more(elsewhere(found, found.special).get('never_whole', 0))}",
    ]
    return f"At the end 4K entries map {count(len(found.frames), 'frame')} of 2M: {'; '.join(parts)}."


def _more(pages: int) -> str:
    return f", with {count(pages, 'more such page')}" if pages else ""


def healing_sentences(found: Who, most: int = MAX_STEPS) -> list[str]:
    """What each cause keeps that nothing before it in the list keeps too: "These 14 pages keep 9 frames in 4K: ..."."""
    sentences = []
    if found.own_first:
        sentences.append(f"Our recorder keeps {count(found.own_first, 'frame')} in 4K.")
    for step in records(found.steps.head(most)):
        causes = records(found.causes.iloc[list(step["causes"])])
        pages = int(step["pages"])
        this, verb = ("This", "keeps") if pages == 1 else ("These", "keep")
        names = ", ".join(cause_text(row["user"], row["cause"]) for row in causes[:3])
        more = f" and {len(causes) - 3} more" if len(causes) > 3 else ""
        together = f", with {number(int(step['pages_of_earlier']))} above" if step["pages_of_earlier"] else ""
        frames = count(int(step["healed"]), "frame")
        sentences.append(f"{this} {count(pages, 'page')} {verb} {frames} in 4K{together}: {names}{more}.")
    left = len(found.steps) - most
    if left > 0:
        healed = found.own_first + int(found.steps["total"].iloc[-1])
        sentences.append(
            f"After {count(left, 'more step')} {number(healed)} of these {count(found.n_frames('kept'), 'frame')} would be kept by no page."
        )
    return sentences


def keepers_view(found: Who) -> KeepersView:
    """For the page."""
    others = found.causes[found.causes["group"] != "own"]
    rows = [
        KeeperRow(
            key=str(row["user"]) if row["user"] in USERS else "other",
            cause=cause_text(row["user"], row["cause"]),
            frames=number(row["frames"]),
            alone=number(row["alone_frames"]),
            pages=number(row["pages"]),
        )
        for row in records(others.head(MAX_CAUSES))
    ]
    more = len(others) - MAX_CAUSES
    own, (frames, alone) = found.causes[found.causes["group"] == "own"], found.kept_by("own")
    return KeepersView(
        states=states_text(found),
        rows=rows,
        more=f"and {count(more, 'cause')} more" if more > 0 else "",
        healing=healing_sentences(found),
        own=KeeperRow("collector", OWN, number(frames), number(alone), number(int(own["pages"].sum())))
        if frames
        else None,
    )


def cause_text(user: object, cause: object) -> str:
    """As `who` names it: `module usbcore`."""
    if user == BEFORE and cause == ATTACHING:
        return "our recorder, from attaching"
    if user == BEFORE:
        return plain(EARLIER if cause in ("", EARLIER) else f"{EARLIER}: {cause}", 80)
    return plain(f"{'our recorder' if user == 'collector' else user} {cause}".strip(), 80)
