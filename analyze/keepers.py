"""Who keeps a 2M frame split: for each page that is not as its frame was, whose it is, since when, and what lies on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.before_start import ATTACHING, BEFORE, names_before, split_while_attaching
from analyze.directmap import DirectMap
from analyze.reconstruct import Rebuild
from analyze.region_owners import KIND_NAMES, NO_REGION, RegionOwners
from analyze.special_pages import END_NS, special_frames, special_pages
from analyze.users import USER_NAMES, User

__all__ = ["NOT_KNOWN_NS", "Makers", "keepers"]

NOT_KNOWN_NS = -1
"""In place of a time that is not known, or has not come."""

_USERS = np.array(USER_NAMES, object)


@dataclass
class Makers:
    """Who made each change, one cell per row of changes, and the regions behind them.

    Attributes:
        user: uint8 `User`.
        name: object, module or program name, "" where not known.
        stack: uint32 stack id.
        owners: regions by page.
        comms: text of each string id.
    """

    user: npt.NDArray[np.uint8]
    name: npt.NDArray[np.object_]
    stack: npt.NDArray[np.uint32]
    owners: RegionOwners
    comms: pd.Series[str]

    def users(self, row: npt.NDArray[np.int64]) -> npt.NDArray[np.object_]:
        """Name of the user of each row; "before" for -1."""
        names: npt.NDArray[np.object_] = np.full(len(row), BEFORE, object)
        names[row >= 0] = _USERS[self.user[row[row >= 0]]]
        return names

    def comm(self, string_id: npt.NDArray[np.uint32]) -> npt.NDArray[np.object_]:
        """Process names; "" for an unknown id."""
        return self.comms.reindex(string_id).fillna("").to_numpy(object)


def keepers(
    rebuilt: Rebuild, makers: Makers, state: DirectMap | None = None, ts_ns: int = END_NS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Special pages and split frames, at the end or in `state` at `ts_ns`, with whose they are.

    Pages: the columns of `special_pages`, and
        user, name: of the last change that covers the page (a page that several have changed goes to the last); "before"
            where none was recorded, with one of the names of `before_start`.
        comm, tgid, stack_id: the process that asked for the region on the page, else that of the change; its stack.
        since_ns: when that change took effect; NOT_KNOWN_NS: before START.
        region_id, region_kind: what lies on the page now, 0 and "" where the trace knows of nothing. What was asked for
            (module, image, secret page), or the pack or block that many share.
        region_since_ns, region_freed_ns: its own lifetime; NOT_KNOWN_NS while it lives.
        n_sharers: living regions that lie on this page of a pack or block; 1 for any other region, 0 without one.
    Frames: the columns of `special_frames`, and split_user, split_name ("while attaching" or "").
    """
    special = special_pages(rebuilt, state, ts_ns)
    frames = special_frames(rebuilt, special, state, ts_ns)
    row = special["row"].to_numpy(np.int64)
    made = row >= 0
    changes, owners = rebuilt.changes, makers.owners
    last = np.maximum(row, 0)
    since = np.full(len(row), NOT_KNOWN_NS, np.int64)
    since[made] = changes.exit_ns[row[made]]
    end_ns = rebuilt.trace.manifest["ts_end_ns"] if ts_ns == END_NS else ts_ns
    backing, within = owners.on_page(special["pfn"].to_numpy(np.int64), end_ns, np.where(made, since, -1))
    there = backing != NO_REGION
    region = backing.copy()
    if there.any():
        region[there] = owners.owner[backing[there]]
    user, name = makers.users(row), np.full(len(row), "", object)
    name[made] = makers.name[row[made]]
    comm, tgid = np.full(len(row), "", object), np.zeros(len(row), np.uint32)
    comm[made] = makers.comm(changes.columns["comm_id"][last[made]])
    tgid[made] = changes.columns["tgid"][last[made]]
    name[~made] = names_before(rebuilt, special[~made])
    if there.any():
        at = region[there]
        name[there] = np.where(owners.name[at] != "", owners.name[at], name[there])
        comm[there], tgid[there] = makers.comm(owners.comm_id[at]), owners.tgid[at]
        unknown = (user[there] == BEFORE) | (user[there] == _USERS[User.OTHER])
        user[there] = np.where(unknown, _USERS[owners.user[at]], user[there])
    return (
        special.assign(
            user=user,
            name=name,
            comm=comm,
            tgid=tgid,
            stack_id=np.where(made, makers.stack[last], 0).astype(np.uint32) if len(makers.stack) else np.uint32(0),
            since_ns=since,
            **_regions(owners, region, backing, within, end_ns),
        ),
        frames.assign(
            split_user=makers.users(frames["split_row"].to_numpy(np.int64)),
            split_name=_split_names(rebuilt, frames),
        ),
    )


def _regions(
    owners: RegionOwners,
    region: npt.NDArray[np.int64],
    backing: npt.NDArray[np.int64],
    within: npt.NDArray[np.int64],
    ts_ns: int,
) -> dict[str, npt.NDArray[np.int64] | npt.NDArray[np.uint64] | npt.NDArray[np.object_]]:
    n = len(region)
    there = region != NO_REGION
    region_id, kind = np.zeros(n, np.uint64), np.full(n, "", object)
    since, freed, sharers = (
        np.full(n, NOT_KNOWN_NS, np.int64),
        np.full(n, NOT_KNOWN_NS, np.int64),
        np.zeros(n, np.int64),
    )
    if there.any():
        at = region[there]
        region_id[there], kind[there], since[there] = (
            owners.region_id[at],
            KIND_NAMES[owners.kind[at]],
            owners.since_ns[at],
        )
        gone = owners.freed_ns[at]
        freed[there] = np.where(gone <= ts_ns, gone, NOT_KNOWN_NS)
        shared = owners.shared[backing[there]]
        sharers[there] = np.where(shared, owners.sharers(backing[there], within[there], ts_ns), 1)
    return {
        "region_id": region_id,
        "region_kind": kind,
        "region_since_ns": since,
        "region_freed_ns": freed,
        "n_sharers": sharers,
    }


def _split_names(rebuilt: Rebuild, frames: pd.DataFrame) -> npt.NDArray[np.object_]:
    earlier = (frames["split_row"] < 0).to_numpy(bool)
    names: npt.NDArray[np.object_] = np.full(len(frames), "", object)
    attaching = split_while_attaching(rebuilt, frames["frame"].to_numpy(np.int64)[earlier])
    names[earlier] = np.where(attaching, ATTACHING, "")
    return names
