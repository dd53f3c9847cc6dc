"""What a report says of one trace: the answer in words, the checks, the pictures' data, who did it, and what is not said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from analyze.attribute import BEFORE, Attribution, attribute
from analyze.page import NO_NAME, Picture, StackView, TraceView, UserRow, UserView, plain
from analyze.plots_levels import LevelsOverTime, SplitsOverTime, levels_figure
from analyze.plots_map import HOLE, LEAF_1G, LEAF_2M, SPLIT_BEFORE, USER_STATES, map_figure
from analyze.plots_style import USERS, inline_svg
from analyze.reconstruct import Rebuild, rebuild
from analyze.report_checks import attached_probes, checks, limits, missing_probes, verdict
from analyze.report_words import duration, enumeration, memory, number, share
from analyze.report_words import splits as splits_text
from analyze.verify import verify
from collect.schema import HUGE_FRAME_PAGES, LEAF_PAGES, Level
from collect.trace import Trace, open_trace

__all__ = ["Analysis", "analyse", "figures", "numbers", "view"]

MAX_NAMES = 8
MAX_STACKS = 10


@dataclass(frozen=True)
class Analysis:
    """A trace with all that was worked out from it."""

    trace: Trace
    rebuilt: Rebuild
    verification: dict[str, Any]
    """`Verification.to_json()`."""
    attribution: Attribution

    @property
    def duration_s(self) -> float:
        """Length of the recording; of a recovered one, up to the last thing known."""
        manifest = self.trace.manifest
        end = max(manifest["ts_end_ns"], int(self.rebuilt.levels["ts_ns"].iloc[-1]))
        return float(max(end - manifest["ts_start_ns"], 0)) / 1e9


def analyse(trace_dir: Path) -> Analysis:
    """Open, rebuild, verify and attribute a trace. Raises TraceError."""
    trace = open_trace(trace_dir)
    rebuilt = rebuild(trace)
    return Analysis(trace, rebuilt, verify(trace, rebuilt).to_json(), attribute(trace, rebuilt))


# --- pictures --------------------------------------------------------------------------------------------------------


def figures(analysis: Analysis) -> dict[str, Figure]:
    """The pictures of a report: `levels` and `map`."""
    splits = analysis.attribution.splits
    levels = analysis.rebuilt.levels
    t_s = _seconds(analysis, levels["ts_ns"])
    over_time = LevelsOverTime(
        t_s,
        levels["g1"].to_numpy(np.int64) * LEAF_PAGES[Level.G1],
        levels["m2"].to_numpy(np.int64) * LEAF_PAGES[Level.M2],
        levels["k4"].to_numpy(np.int64),
    )
    by_whom = SplitsOverTime(
        _seconds(analysis, splits["ts_ns"]),
        splits["user"].to_numpy(dtype=object),
        (splits["level"] == Level.G1).to_numpy(bool),
    )
    gigas = splits.loc[splits["level"] == Level.G1, "pfn"].to_numpy(np.int64) // LEAF_PAGES[Level.G1]
    return {
        "levels": levels_figure(over_time, by_whom, analysis.duration_s),
        "map": map_figure(_states(analysis), gigas),
    }


def _seconds(analysis: Analysis, ts_ns: pd.Series[int]) -> npt.NDArray[np.float64]:
    since: npt.NDArray[np.float64] = (ts_ns - analysis.trace.manifest["ts_start_ns"]).to_numpy(np.float64) / 1e9
    return np.maximum(since, 0.0)


def _states(analysis: Analysis) -> npt.NDArray[np.uint8]:
    """State of each 2M frame at the end, as the map draws it."""
    levels = analysis.rebuilt.final.frame_levels()
    codes = np.array([HOLE, SPLIT_BEFORE, LEAF_2M, LEAF_1G], np.uint8)  # by Level
    states: npt.NDArray[np.uint8] = codes[levels]
    splits = analysis.attribution.splits
    of_2m = splits[splits["level"] == Level.M2].drop_duplicates("pfn", keep="first")
    frames = of_2m["pfn"].to_numpy(np.int64) // HUGE_FRAME_PAGES
    users = np.array([USER_STATES.get(user, USER_STATES["other"]) for user in of_2m["user"]], np.uint8)
    still = states[frames] == SPLIT_BEFORE
    states[frames[still]] = users[still]
    end = np.flatnonzero(states != HOLE)
    return states[: int(end[-1]) + 1] if len(end) else states[:0]


# --- who -------------------------------------------------------------------------------------------------------------


def _users(analysis: Analysis) -> list[UserView]:
    """Each user who split anything, most splits first; under it the names, and the processes that ran them."""
    attribution = analysis.attribution
    held = _held(attribution)
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


def _held(attribution: Attribution) -> dict[tuple[str, str], int]:
    """Pages that are still special at the end within frames split now, by user and name."""
    special = attribution.special
    alive = special[~special["residue"].astype(bool)]
    counts = alive.groupby(["user", "name"]).size().reset_index(name="n")
    return {(str(user), str(name)): int(n) for user, name, n in counts.itertuples(index=False)}


def _users_note(attribution: Attribution) -> str:
    """What keeps frames split at the end, and how many nothing keeps."""
    frames = attribution.frames
    free = int((~frames["live"].astype(bool)).sum())
    held = _held(attribution)
    before = sum(n for (user, _), n in held.items() if user == BEFORE)
    note = (
        "A special page is one that is not as its 2M entry was: not present, read-only, executable. "
        f"At the end {number(len(frames))} frames are in 4K entries; {number(free)} of them hold no special page any more and "
        "could be one 2M entry again, if the kernel put them together."
    )
    return note + (f" {number(before)} special pages are from before the recording." if before else "")


def _counts(splits: pd.DataFrame) -> tuple[int, int]:
    return int((splits["level"] == Level.M2).sum()), int((splits["level"] == Level.G1).sum())


def _processes(comms: pd.Series[str]) -> str:
    counts = comms.value_counts()
    shown = ", ".join(f"{plain(str(comm), 40)} × {n}" for comm, n in counts.head(3).items())
    return shown + (f" and {len(counts) - 3} more" if len(counts) > 3 else "")


def _stacks(analysis: Analysis) -> list[StackView]:
    """The ways into the direct map that split most; ways that differ in nothing but offsets are one."""
    ways: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for _, part in analysis.attribution.splits.groupby(["user", "stack_id"], sort=False):
        landmarks = _landmarks(_frames(analysis, part))
        ways.setdefault((str(part["user"].iloc[0]), " ← ".join(landmarks)), []).append(part)
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


_INNER = re.compile(r"(__)?change_page_attr|bpf_trampoline|bpf_prog_[0-9a-f]{16}|__bpf_prog_e|0x")
"""What the choke point and the recorder's own probe put into every stack."""


def _landmarks(frames: Sequence[str]) -> list[str]:
    """The functions that tell a reader where the change came from: the API, and who called it."""
    symbols = [frame.split("+")[0] for frame in frames]
    telling = [symbol for symbol in symbols if not _INNER.match(symbol)] or symbols
    return [symbol for i, symbol in enumerate(telling) if i == 0 or symbol != telling[i - 1]][:4]


# --- words -----------------------------------------------------------------------------------------------------------


def _what_was_split(users: Sequence[UserView], how_long: str) -> str:
    n_2m, n_1g = sum(user.n_2m for user in users), sum(user.n_1g for user in users)
    if not users:
        return f"In {how_long} nobody split an entry of the direct map."
    if len(users) == 1:
        by_whom = f", all by {users[0].label}"
    else:
        by_whom = ": " + enumeration([f"{user.label} {splits_text(user.n_2m, user.n_1g)}" for user in users])
    whole = "its" if n_2m else "the kernel's"
    parts = [f"{number(n_2m)} of the kernel's 2M entries"] * bool(n_2m)
    parts += [f"{number(n_1g)} of {whole} 1G entries"] * bool(n_1g)
    verb = "was" if n_2m + n_1g == 1 else "were"
    return f"In {how_long}, {enumeration(parts)} {verb} split{by_whom}."


def _what_is_left(levels: pd.DataFrame) -> str:
    first, last = levels.iloc[0], levels.iloc[-1]
    total = max(1, int(last["k4"] + last["m2"] * LEAF_PAGES[Level.M2] + last["g1"] * LEAF_PAGES[Level.G1]))
    k4_first, k4_last, g1_first, g1_last = (int(row[column]) for column in ("k4", "g1") for row in (first, last))
    if g1_first == g1_last:
        large = f"and all 1G entries ({number(g1_last)}) stayed whole" if g1_last else "and there were no 1G entries"
    else:
        large = f"and 1G entries went from {number(g1_first)} to {number(g1_last)}"
    if k4_first == k4_last:
        small = f"4K entries mapped {memory(k4_last)} ({share(k4_last, total)}) of this machine's {memory(total)} throughout"
    else:
        small = (
            f"4K entries mapped {memory(k4_first)} ({share(k4_first, total)}) of this machine's {memory(total)} at the "
            f"start and {memory(k4_last)} ({share(k4_last, total)}) at the end"
        )
    return f"{small}, {large}."


def _provenance(analysis: Analysis) -> list[tuple[str, str]]:
    trace, manifest = analysis.trace, analysis.trace.manifest
    kernel, cpu, ram = manifest["kernel"], manifest["cpu"], manifest["memory"]
    pages = sum(end - first for first, end in ram["ranges"])
    emulated = ", emulated: times mean nothing" if cpu.get("emulated") else ""
    return [
        ("kernel", plain(f"{kernel.get('release')} {kernel.get('version')}", 300)),
        ("booted with", plain(str(kernel.get("cmdline", "")), 400)),
        ("machine", plain(f"{cpu.get('n_online')} × {cpu.get('model')}{emulated}")),
        ("memory", f"{memory(pages)} in {len(ram['ranges'])} ranges, {ram['paging_levels']}-level page tables"),
        ("recorded", plain(f"{manifest['created']}, for {duration(analysis.duration_s)}")),
        ("command", plain(" ".join(map(str, manifest["command"])), 400)),
        ("recorder", plain(f"directmap {manifest['tool_version']}, trace format {manifest['format_version']}")),
        ("probes", plain(", ".join(attached_probes(manifest)), 900) or "none"),
        ("rows", ", ".join(f"{name} {number(trace.n_rows(name))}" for name in ("changes", "regions", "pages", "snapshots"))),
    ]  # fmt: skip


def view(
    analysis: Analysis, drawn: dict[str, Figure], *, slug: str = "trace", files: dict[str, list[str]] | None = None
) -> TraceView:
    """The view of a trace for a page.

    Args:
        drawn: what `figures` returned.
        slug: ASCII word that tells this trace from others on the same page.
        files: for each picture, the files beside the page that hold it.
    """
    files = files or {}
    manifest = analysis.trace.manifest
    users = _users(analysis)
    happened = _what_was_split(users, duration(analysis.duration_s))
    emulated = " · emulated CPUs" if manifest["cpu"].get("emulated") else ""
    n_pages = sum(end - first for first, end in manifest["memory"]["ranges"])
    return TraceView(
        slug=slug,
        title=plain(analysis.trace.path.absolute().name),
        subtitle=plain(
            f"Linux {manifest['kernel'].get('release')} · {memory(n_pages)} of memory · recorded "
            f"{str(manifest['created'])[:10]} for {duration(analysis.duration_s)}{emulated}"
        ),
        happened=happened,
        left=_what_is_left(analysis.rebuilt.levels),
        verdict=verdict(analysis.verification),
        checks=checks(analysis.verification, manifest),
        levels=Picture(
            Markup(inline_svg(drawn["levels"], f"{slug}-levels", f"Memory by level over time, and who split it. {happened}")),
            "Above: how much physical memory 1G, 2M and 4K entries map. Below, on the same time axis: every split, by whom.",
            files.get("levels", ()),
        ),
        map=Picture(
            Markup(inline_svg(drawn["map"], f"{slug}-map", f"Map of physical memory by state. {happened}")),
            "State at the end of the recording. A frame that was split while recording has the colour and the mark of whoever split it first.",
            files.get("map", ()),
        ),
        users=users,
        users_note=_users_note(analysis.attribution),
        stacks=_stacks(analysis),
        limits=limits(analysis.verification, manifest),
        provenance=_provenance(analysis),
    )  # fmt: skip


def numbers(analysis: Analysis, seen: TraceView) -> dict[str, Any]:
    """The report as strict JSON: what `seen` shows, for machines."""
    manifest = analysis.trace.manifest
    levels = analysis.rebuilt.levels
    ends = {"start": levels.iloc[0], "end": levels.iloc[-1]}
    return {
        "trace": seen.title,
        "answer": seen.answer,
        "verification": analysis.verification,
        "leaf_entries": {
            when: {"4K": int(row["k4"]), "2M": int(row["m2"]), "1G": int(row["g1"])} for when, row in ends.items()
        },
        "users": [
            {
                "user": user.key,
                "splits_2m": user.n_2m,
                "splits_1g": user.n_1g,
                "names": [{"name": r.name, "splits_2m": r.n_2m, "splits_1g": r.n_1g} for r in user.rows],
            }
            for user in seen.users
        ],
        "losses": manifest["losses"],
        "probes": {
            "attached": attached_probes(manifest),
            "missing": [plain(str(probe.get("name"))) for probe in missing_probes(manifest)],
        },
        "kernel": {key: plain(str(manifest["kernel"].get(key)), 600) for key in ("release", "version", "cmdline")},
        "created": manifest["created"],
        "duration_s": analysis.duration_s,
        "tool_version": manifest["tool_version"],
        "format_version": manifest["format_version"],
        "limits": list(seen.limits),
    }
