"""Whose doing each change and each split is, and who keeps frames split at the end.

The order of evidence: our own process; the stack (a nested call has its parent's); the region whose page it is, which
names what kworkers free on behalf of others (delayed vfree). What our own process asked for stays ours when a kworker
frees it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.reconstruct import Rebuild
from analyze.region_owners import NO_REGION, RegionOwners
from analyze.special_pages import special_frames, special_pages
from analyze.stacks import Stacks
from analyze.users import SYMBOLS, USER_NAMES, User
from collect.errors import TraceError
from collect.trace import Trace

__all__ = ["USER_NAMES", "Attribution", "User", "attribute"]

_MAX_DEPTH = 8
"""Nested calls deeper than this do not occur: an alias call has no alias call of its own."""

BEFORE = "before"
"""In place of a user: made before the recording started."""


@dataclass
class Attribution:
    """Who did what.

    Attributes:
        change_user: uint8 `User` per row of changes.
        change_root: int64 per row: the row of the outermost call it is nested in (itself for a primary one, and for one
            made in the reclaim of another's allocation).
        change_stack: uint32 per row: the stack of that call; 0 for none.
        change_name: object per row: module or program whose memory it changed, "" where not known.
        splits: `Rebuild.splits` and user (name), comm, pid, tgid, stack_id, name.
        special: one row per page of a split frame whose attributes are not those its frame had as a leaf: pfn, frame,
            attrs, original, residue (only G differs: left behind, held by nobody), row (of changes, -1: before
            START), user (name, or "before"), name.
        frames: one row per 2M frame split at the end: frame (pfn >> 9), pfn, n_special (residue not counted),
            n_residue, live (n_special > 0), split_row (-1: before START), split_user.
        stacks: the stacks of the trace.
    """

    change_user: npt.NDArray[np.uint8]
    change_root: npt.NDArray[np.int64]
    change_stack: npt.NDArray[np.uint32]
    change_name: npt.NDArray[np.object_]
    splits: pd.DataFrame
    special: pd.DataFrame
    frames: pd.DataFrame
    stacks: Stacks

    def stack_frames(self, stack_id: int) -> list[str]:
        """Frames of a stack, innermost first."""
        return self.stacks.frames(stack_id)


def attribute(trace: Trace, rebuilt: Rebuild) -> Attribution:
    """Attribute every change, split and special page of a rebuilt trace. Raises TraceError."""
    changes = rebuilt.changes
    columns = changes.columns
    stacks = Stacks(trace)
    user_of_stack = users_of_stacks(stacks)
    owners = RegionOwners(trace, stacks, user_of_stack)
    root = _roots(columns["call_id"], columns["parent_id"], columns["stack_id"])
    stack = np.where(columns["stack_id"] != 0, columns["stack_id"], columns["stack_id"][root])
    region = _regions(rebuilt, root, owners)
    recorder = trace.manifest["recorder"].get("tgid")
    user = user_of_stack[stacks.known(stack)]
    name = np.full(len(changes), "", object)
    known = region != NO_REGION
    if known.any():
        at = region[known]
        user[known] = np.where(user[known] == User.OTHER, owners.user[at], user[known])
        name[known] = owners.name[at]
        if isinstance(recorder, int):
            user[known] = np.where(owners.tgid[at] == recorder, User.COLLECTOR, user[known])
    if isinstance(recorder, int):
        user[columns["tgid"] == recorder] = User.COLLECTOR
    splits = _splits(trace, rebuilt, user, stack, name)
    special = special_pages(rebuilt)
    frames = special_frames(rebuilt, special)
    return Attribution(
        change_user=user,
        change_root=root,
        change_stack=stack,
        change_name=name,
        splits=splits,
        special=special.assign(user=_user_names(special["row"], user), name=_names(special["row"], name)),
        frames=frames.assign(split_user=_user_names(frames["split_row"], user)),
        stacks=stacks,
    )


def users_of_stacks(stacks: Stacks) -> npt.NDArray[np.uint8]:
    """By stack id: the `User` that the innermost telling symbol names, OTHER where none does."""
    users = np.zeros(stacks.size, np.uint8)
    for stack_id, symbols in stacks.symbols.items():
        users[stack_id] = next((SYMBOLS[name] for name in symbols if name in SYMBOLS), User.OTHER)
    users[0] = User.OTHER
    return users


def _roots(
    call_id: npt.NDArray[np.uint64], parent_id: npt.NDArray[np.uint64], stack_id: npt.NDArray[np.uint32]
) -> npt.NDArray[np.int64]:
    """Row of the outermost recorded call around each row that is of the same user's making.

    A nested call with a stack of its own is another user's, made in the reclaim of a split's allocation.
    """
    rows = np.arange(len(call_id))
    if not len(rows):
        return rows
    order = np.argsort(call_id, kind="stable")
    at = np.minimum(np.searchsorted(call_id[order], parent_id), len(order) - 1)
    found = (call_id[order][at] == parent_id) & (parent_id != 0) & (stack_id == 0)
    parent = np.where(found, order[at], rows)
    root = parent
    for _ in range(_MAX_DEPTH):
        root = parent[root]
    return root


def _regions(rebuilt: Rebuild, root: npt.NDArray[np.int64], owners: RegionOwners) -> npt.NDArray[np.int64]:
    """Region of each change: by page frame for a direct-map change, else by the address of the outermost call."""
    changes = rebuilt.changes
    address, ts = changes.columns["address"], changes.columns["ts_ns"]
    region = owners.of_address(address[root], ts)
    direct = changes.direct & (changes.first_pfn >= 0)
    by_pfn = owners.of_pfn(np.where(direct, changes.first_pfn, 0).astype(np.uint64), ts)
    return np.where(direct & (region == NO_REGION), by_pfn, region)


def _splits(
    trace: Trace,
    rebuilt: Rebuild,
    user: npt.NDArray[np.uint8],
    stack: npt.NDArray[np.uint32],
    name: npt.NDArray[np.object_],
) -> pd.DataFrame:
    table = trace.table("strings")
    texts = pd.Series(table["text"].to_pylist(), index=table["string_id"].to_numpy(), dtype=object)
    if texts.index.has_duplicates:
        raise TraceError(f"{trace.path}: table strings: a string_id comes twice; copy the trace anew")
    rows = rebuilt.splits["row"].to_numpy(np.int64)
    columns = rebuilt.changes.columns
    return rebuilt.splits.assign(
        user=np.array(USER_NAMES, object)[user[rows]],
        comm=texts.reindex(columns["comm_id"][rows]).fillna("").to_numpy(object),
        pid=columns["pid"][rows],
        tgid=columns["tgid"][rows],
        stack_id=stack[rows],
        name=name[rows],
    )


def _user_names(row: pd.Series[int], user: npt.NDArray[np.uint8]) -> npt.NDArray[np.object_]:
    rows = row.to_numpy(np.int64)
    names: npt.NDArray[np.object_] = np.full(len(rows), BEFORE, object)
    names[rows >= 0] = np.array(USER_NAMES, object)[user[rows[rows >= 0]]]
    return names


def _names(row: pd.Series[int], name: npt.NDArray[np.object_]) -> npt.NDArray[np.object_]:
    rows = row.to_numpy(np.int64)
    names: npt.NDArray[np.object_] = np.full(len(rows), "", object)
    names[rows >= 0] = name[rows[rows >= 0]]
    return names
