"""Who split the map, in what the page shows: users with their names and processes, and the code they came through."""

from __future__ import annotations

import pandas as pd

from analyze.analysis import Analysis
from analyze.attribute import BEFORE, Attribution
from analyze.before_start import ATTACHING
from analyze.plots.style import USERS
from analyze.report.page import NO_NAME, StackView, UserRow, UserView, plain
from analyze.who import Who
from analyze.words.numbers import number
from analyze.words.numbers import splits as splits_text
from analyze.words.who import elsewhere_text
from collect.schema import Level

__all__ = ["held_pages", "stacks", "users", "users_note"]

MAX_NAMES = 8
MAX_STACKS = 10


def users(analysis: Analysis) -> list[UserView]:
    """Each user who split anything, most splits first; under it the names, and the processes that ran them."""
    attribution = analysis.attribution
    held = held_pages(attribution)
    views = []
    for user, own in attribution.splits.groupby("user", sort=False):
        rows = [
            UserRow(
                plain(str(name)) or NO_NAME,
                _processes(part["comm"]),
                *_counts(part),
                held=number(held.get((str(user), str(name)), 0)),
            )
            for name, part in own.groupby("name", sort=False)
        ]
        rows.sort(key=lambda row: (-row.n_2m, -row.n_1g, row.name))
        left = rows[MAX_NAMES:]
        more = ""
        if left:
            more = f"and {len(left)} more: {splits_text(sum(r.n_2m for r in left), sum(r.n_1g for r in left))}"
        total = sum(n for (whose, _), n in held.items() if whose == user)
        key = str(user) if user in USERS else "other"
        views.append(UserView(key, USERS[key].label, *_counts(own), number(total), rows[:MAX_NAMES], more))
    return sorted(views, key=lambda v: (-v.n_2m, -v.n_1g, v.key))


def held_pages(attribution: Attribution) -> dict[tuple[str, str], int]:
    """Pages that are still special at the end within frames split now, by user and name."""
    special = attribution.special
    alive = special[~special["residue"].astype(bool)]
    counts = alive.groupby(["user", "name"]).size().reset_index(name="n")
    return {(str(user), str(name)): int(n) for user, name, n in counts.itertuples(index=False)}


def users_note(found: Who) -> str:
    """What a special page is, and how many are nobody's in the table: with these all add up to those of "what keeps it split"."""
    note = "A special page is one that is not as its 2M entry was: not present, read-only, executable."
    special = found.special[~found.special["residue"].astype(bool) & (found.special["user"] == BEFORE)]
    attaching = special["name"] == ATTACHING
    parts = {
        "are from before the recording": special[~attaching],
        "came while our recorder attached": special[attaching],
    }
    said = [f"{number(len(own))} {how}{elsewhere_text(found, own)}" for how, own in parts.items() if len(own)]
    return f"{note} Beside those in the table {' and '.join(said)}." if said else note


def _counts(splits: pd.DataFrame) -> tuple[int, int]:
    return int((splits["level"] == Level.M2).sum()), int((splits["level"] == Level.G1).sum())


def _processes(comms: pd.Series[str]) -> str:
    counts = comms.value_counts()
    shown = ", ".join(f"{plain(str(comm), 40)} × {n}" for comm, n in counts.head(3).items())
    return shown + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")


def stacks(analysis: Analysis) -> list[StackView]:
    """The ways into the direct map that split most; ways that differ in nothing but offsets are one."""
    ways: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for _, part in analysis.attribution.splits.groupby(["user", "stack_id"], sort=False):
        telling = [plain(name) for name in analysis.attribution.stacks.landmarks(int(part["stack_id"].iloc[0]))]
        ways.setdefault((str(part["user"].iloc[0]), " ← ".join(telling)), []).append(part)
    views = []
    for (user, how), parts in sorted(ways.items(), key=lambda way: -sum(map(len, way[1])))[:MAX_STACKS]:
        key = user if user in USERS else "other"
        n_2m, n_1g = _counts(pd.concat(parts))
        frames = _frames(analysis, max(parts, key=len))
        summary = f"{splits_text(n_2m, n_1g)} by {USERS[key].label}: {how or 'no stack was recorded'}"
        views.append(StackView(key, summary, frames or ["(none)"]))
    return views


def _frames(analysis: Analysis, splits: pd.DataFrame) -> list[str]:
    stack_id = int(splits["stack_id"].iloc[0])
    return [plain(frame) for frame in analysis.attribution.stack_frames(stack_id)]
