"""Who splits the direct map, who keeps it split at a moment, and what would have to go for it to heal.

Causes are of pages that are not as their frame was as one entry (`analyze.special_pages`); a page that several have changed
belongs to the last. Frames that nothing keeps stay split all the same: no kernel from 5.10 to 7.3 puts entries of
the direct map together again (CPA_COLLAPSE of 6.15 and later visits the range that set_memory_rox was called on, and not
its alias in the direct map: arch/x86/mm/pat/set_memory.c, cpa_flush and cpa_collapse_large_pages).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.attribute import Attribution
from analyze.causes import By, cause_names, label
from analyze.directmap import FRAME, GIGA, DirectMap
from analyze.healing import Holds, Order, healing_order, hold
from analyze.keepers import keepers
from analyze.pages.scatter import Scatter, scatter, scatter_by
from analyze.reconstruct import Rebuild
from analyze.special_pages import END_NS, splits_by
from analyze.stacks import Stacks
from collect.schema import Level

__all__ = ["STATES", "Who", "who"]

MAX_STEPS = 200
"""Steps of a healing order."""

MAX_JSON_ROWS = 1000
"""Splits and pages that `to_json` lists; all are counted."""

STATES = ("never_whole", "alike", "kept", "residue")
"""Why a frame is split at a moment, the first that is true: it never was one entry (memory ends inside it, or it is the
first, whose lower half the kernel maps apart: arch/x86/mm/init.c, init_mem_mapping, ISA_END_ADDRESS); one entry could map
it as it is, for all its pages are alike; a special page keeps it; its pages differ in the G bit alone, which invalid and
default have left off. Accessed and dirty are never looked at: the CPU sets them."""


@dataclass
class Who:
    """Who did and who does, by one axis.

    Attributes:
        ts_ns: the moment; `END_NS` for the end.
        by: the axis.
        splits: `Attribution.splits` up to the moment, and cause (text), group, now (of `STATES`: of a 2M split whose frame is
            split now, and by none after it; else "").
        split_by: one row per (user, cause): group, n_2m, n_1g, still (now is not ""), and of those kept, residue, alike; first_ns,
            last_ns, processes; most splits first.
        special: `keepers`' pages, and cause, group; residue included.
        frames: `keepers`' frames, and state (of `STATES`), step (of the healing order; -1).
        causes: one row per (user, cause) with live special pages in frames of state "kept": group ("known", "own",
            "fixed", "unknown": `causes.group_of`), pages, frames, alone_frames (that it alone keeps), alone_pages (its pages in
            those), gigas, least (frames its pages fit in), since_ns (first), processes, step (-1).
        steps: healing order of the known causes, our own gone first: step, causes (list of rows of `causes`), healed, pages
            (of those causes, in those frames), total (frames healed so far).
        own_first: frames that are free once our own pages are gone, before the first step.
        scatter, scatter_by_user: how live special pages lie.
        stacks: the stacks of the trace.
    """

    ts_ns: int
    by: By
    splits: pd.DataFrame
    split_by: pd.DataFrame
    special: pd.DataFrame
    frames: pd.DataFrame
    causes: pd.DataFrame
    steps: pd.DataFrame
    own_first: int
    scatter: Scatter
    scatter_by_user: dict[str, Scatter]
    stacks: Stacks

    @property
    def at_end(self) -> bool:
        """Whether it is of the end of the recording, not of a moment that was asked for."""
        return self.ts_ns == END_NS

    def n_frames(self, state: str) -> int:
        """Split frames in one of `STATES`."""
        return int((self.frames["state"] == state).sum())

    def kept_by(self, group: str) -> tuple[int, int]:
        """Frames in which a cause of the group has a page, and those that causes of that group alone keep."""
        live = self.special[~self.special["residue"] & self.special["kept"]]
        groups = live.assign(mine=live["group"] == group).groupby("frame")["mine"]
        return int(groups.any().sum()), int(groups.all().sum())


def who(
    rebuilt: Rebuild,
    attribution: Attribution,
    by: By = By.NAME,
    *,
    state: DirectMap | None = None,
    ts_ns: int = END_NS,
    most_steps: int = MAX_STEPS,
) -> Who:
    """Who splits, who keeps split. At the end, or in `state`, the map at `ts_ns`."""
    stacks = attribution.stacks
    if state is None:
        special, frames = attribution.special, attribution.frames
    else:
        special, frames = keepers(rebuilt, attribution.makers, state, ts_ns)
    splits = attribution.splits.loc[splits_by(rebuilt, ts_ns).index]
    frame_state = _states(frames)
    splits = splits.assign(now=_now(splits, frames, frame_state))
    splits = _with_cause(splits, splits.assign(comm=splits["for_comm"]), by, stacks)
    kept = (
        frame_state[np.searchsorted(frames["frame"].to_numpy(np.int64), special["frame"].to_numpy(np.int64))] == "kept"
    )
    special = _with_cause(special.assign(kept=kept), special, by, stacks)
    live = special[~special["residue"].to_numpy(bool)]
    inside = live[live["kept"]]
    code, causes = cause_names(inside["user"].to_numpy(object), inside["cause"].to_numpy(object))
    held_frames, frame = np.unique(inside["frame"].to_numpy(np.int64), return_inverse=True)
    holds = hold(frame.reshape(-1).astype(np.int64), code, len(held_frames), len(causes))
    group = causes["group"].to_numpy(object)
    order = healing_order(holds, group == "known", group == "own", np.ones(len(held_frames), np.bool_), most_steps)
    causes = _causes(causes, inside, code, holds, order)
    step = np.full(len(frames), -1, np.int64)
    step[np.searchsorted(frames["frame"].to_numpy(np.int64), held_frames)] = order.step_of_frame
    ranked = causes.sort_values(["alone_frames", "frames", "pages"], ascending=False, kind="stable")
    return Who(
        ts_ns=ts_ns,
        by=by,
        splits=splits,
        split_by=_split_by(splits),
        special=special,
        frames=frames.assign(state=frame_state, step=step),
        causes=ranked.reset_index(drop=True),
        steps=_steps(causes, ranked.index.to_numpy(np.int64), holds, order),
        own_first=order.first,
        scatter=scatter(live["pfn"].to_numpy(np.int64)),
        scatter_by_user=scatter_by(live),
        stacks=stacks,
    )


def _with_cause(rows: pd.DataFrame, named: pd.DataFrame, by: By, stacks: Stacks) -> pd.DataFrame:
    cause = label(named, by, stacks)
    code, table = cause_names(rows["user"].to_numpy(object), cause)
    group = table["group"].to_numpy(object)[code] if len(table) else np.empty(0, object)
    return rows.assign(cause=cause, group=group)


def _states(frames: pd.DataFrame) -> npt.NDArray[np.object_]:
    never = (frames["n_holes"] > 0) | ((frames["frame"] == 0) & (frames["split_row"] < 0))
    conditions = [column.to_numpy(bool) for column in (never, frames["alike"], frames["live"])]
    return np.select(conditions, list(STATES[:3]), STATES[3]).astype(object)


def _now(splits: pd.DataFrame, frames: pd.DataFrame, frame_state: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    """What became of the frame of each 2M split that is the last one of a frame split now; "" for the other splits."""
    number, frame = frames["frame"].to_numpy(np.int64), splits["pfn"].to_numpy(np.int64) // FRAME
    now: npt.NDArray[np.object_] = np.full(len(splits), "", object)
    if not len(frames):
        return now
    at = np.minimum(np.searchsorted(number, frame), len(number) - 1)
    # A frame that was put together and split again is the last one's; so is the frame now.
    last = frames["split_row"].to_numpy(np.int64)[at] == splits["row"].to_numpy(np.int64)
    still = (splits["level"] == Level.M2).to_numpy(bool) & (number[at] == frame) & last
    now[still] = frame_state[at[still]]
    return now


def _split_by(splits: pd.DataFrame) -> pd.DataFrame:
    now = {state: splits["now"] == state for state in STATES}
    levels = {"is_2m": splits["level"] == Level.M2, "is_1g": splits["level"] == Level.G1}
    grouped = splits.assign(still=splits["now"] != "", **levels, **now).groupby(["user", "cause"], sort=True)
    table = grouped.agg(
        group=("group", "first"),
        n_2m=("is_2m", "sum"),
        n_1g=("is_1g", "sum"),
        still=("still", "sum"),
        kept=("kept", "sum"),
        residue=("residue", "sum"),
        alike=("alike", "sum"),
        first_ns=("ts_ns", "min"),
        last_ns=("ts_ns", "max"),
        processes=("for_tgid", "nunique"),
    ).reset_index()
    return table.sort_values(["n_2m", "n_1g"], ascending=False, kind="stable").reset_index(drop=True)


def _causes(
    causes: pd.DataFrame, live: pd.DataFrame, code: npt.NDArray[np.int64], holds: Holds, order: Order
) -> pd.DataFrame:
    n = len(causes)
    alone = holds.alone()
    pfn = live["pfn"].to_numpy(np.int64)
    rows = pd.DataFrame({"code": code, "giga": pfn // GIGA, "tgid": live["tgid"], "since_ns": live["since_ns"]})
    grouped = rows.groupby("code", sort=True)
    pages = np.bincount(code, minlength=n).astype(np.int64)
    return causes.assign(
        pages=pages,
        frames=np.diff(holds.cause_start),
        alone_frames=np.bincount(holds.causes[alone], minlength=n).astype(np.int64),
        alone_pages=np.bincount(holds.causes[alone], holds.pages[alone], minlength=n).astype(np.int64),
        gigas=grouped["giga"].nunique().reindex(range(n), fill_value=0).to_numpy(np.int64),
        least=-(-pages // FRAME),
        since_ns=grouped["since_ns"].min().reindex(range(n), fill_value=-1).to_numpy(np.int64),
        processes=grouped["tgid"].nunique().reindex(range(n), fill_value=0).to_numpy(np.int64),
        step=order.step_of_cause,
    )


def _steps(causes: pd.DataFrame, ranked: npt.NDArray[np.int64], holds: Holds, order: Order) -> pd.DataFrame:
    place = np.empty(len(causes), np.int64)
    place[ranked] = np.arange(len(causes))
    step = causes["step"].to_numpy(np.int64)
    freed = order.step_of_frame[holds.frame_of()]
    ours = (freed >= 0) & (step[holds.causes] == freed)
    # Causes of an earlier step that were in a frame freed only now are counted with that frame too: they held it.
    earlier = (freed >= 0) & (step[holds.causes] >= 0) & (step[holds.causes] < freed)
    n = len(order.healed)
    pages = np.bincount(freed[ours], holds.pages[ours], minlength=n).astype(np.int64)
    before = np.bincount(freed[earlier], holds.pages[earlier], minlength=n).astype(np.int64)
    members: list[list[int]] = [[] for _ in range(n)]
    for cause in np.flatnonzero(step >= 0).tolist():
        members[step[cause]].append(int(place[cause]))
    return pd.DataFrame(
        {
            "step": np.arange(n),
            "causes": pd.Series(members, dtype=object),
            "healed": order.healed,
            "pages": pages,
            "pages_of_earlier": before,
            "total": np.cumsum(order.healed),
        }
    )


def to_json(found: Who, start_ns: int) -> dict[str, Any]:
    """Plain values for JSON; times in nanoseconds since the recording began, null where not known."""

    def since(ts_ns: int) -> int | None:
        return None if ts_ns < 0 else int(ts_ns) - start_ns

    def rows(table: pd.DataFrame, most: int | None = None) -> list[dict[str, Any]]:
        shown = table if most is None else table.head(most)
        columns = {str(name): shown[name].tolist() for name in shown.columns}
        for name in [name for name in columns if name.endswith("_ns")]:
            columns[name] = [since(value) for value in columns[name]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    live = found.special[~found.special["residue"]]
    used = {*found.splits["stack_id"].head(MAX_JSON_ROWS).tolist(), *live["stack_id"].head(MAX_JSON_ROWS).tolist()}
    return {
        "at_ns": None if found.at_end else found.ts_ns - start_ns,
        "by": str(found.by),
        "split_by": rows(found.split_by),
        "frames": {"split": len(found.frames), **{state: found.n_frames(state) for state in STATES}},
        "kept_by": {
            group: dict(zip(("frames", "alone"), found.kept_by(group), strict=True))
            for group in ("known", "own", "fixed", "unknown")
        },
        "causes": rows(found.causes),
        "healing": {"own_first": found.own_first, "steps": rows(found.steps)},
        "scatter": {"all": found.scatter.to_json(), **{u: s.to_json() for u, s in found.scatter_by_user.items()}},
        "n_splits": len(found.splits),
        "splits": rows(found.splits, MAX_JSON_ROWS),
        "n_special_pages": len(live),
        "special_pages": rows(live.drop(columns="residue"), MAX_JSON_ROWS),
        "stacks": {str(stack): found.stacks.frames(stack) for stack in sorted(used) if stack},
    }
