"""Whose doing each change and each split is, and who keeps frames split at the end.

The order of evidence: our own process; the stack (a nested call has its parent's); the region whose page it is, which
names what kworkers free on behalf of others (delayed vfree). What our own process asked for stays ours when a kworker
frees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.before_start import BEFORE
from analyze.keepers import Makers, keepers
from analyze.reconstruct import Rebuild
from analyze.region_owners import KIND_NAMES, NO_REGION, RegionOwners
from analyze.stacks import Stacks
from analyze.users import SYMBOLS, USER_NAMES, User
from collect.errors import TraceError
from collect.trace import Trace

__all__ = ["BEFORE", "USER_NAMES", "Attribution", "User", "attribute"]

_MAX_DEPTH = 8
"""Nested calls deeper than this do not occur: an alias call has no alias call of its own."""


@dataclass
class Attribution:
    """Who did what.

    Attributes:
        change_user: uint8 `User` per row of changes.
        change_root: int64 per row: the row of the outermost call it is nested in (itself for a primary one, and for one
            made in the reclaim of another's allocation).
        change_stack: uint32 per row: the stack of that call; 0 for none.
        change_name: object per row: module or program whose memory it changed, "" where not known.
        splits: `Rebuild.splits` and user (name), comm, pid, tgid, stack_id, name, for_comm and for_tgid (the process that
            asked for the region behind it, where a kworker or another process made the change; else the same),
            region_id, region_kind (0 and "" where none is known).
        makers: what `keepers` needs to say of any moment who keeps frames split.
        stacks: the stacks of the trace.
        rebuilt: what it was told from.
    """

    change_user: npt.NDArray[np.uint8]
    change_root: npt.NDArray[np.int64]
    change_stack: npt.NDArray[np.uint32]
    change_name: npt.NDArray[np.object_]
    splits: pd.DataFrame
    makers: Makers
    stacks: Stacks
    rebuilt: Rebuild

    @property
    def special(self) -> pd.DataFrame:
        """Pages that keep frames split at the end (`analyze.keepers.keepers`); looked for when first asked for."""
        return self._kept[0]

    @property
    def frames(self) -> pd.DataFrame:
        """Those frames."""
        return self._kept[1]

    @cached_property
    def _kept(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return keepers(self.rebuilt, self.makers)

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
    makers = Makers(user, name, stack, owners, _texts(trace))
    return Attribution(
        change_user=user,
        change_root=root,
        change_stack=stack,
        change_name=name,
        splits=_splits(rebuilt, makers, region),
        makers=makers,
        stacks=stacks,
        rebuilt=rebuilt,
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


def _texts(trace: Trace) -> pd.Series[str]:
    table = trace.table("strings")
    texts = pd.Series(table["text"].to_pylist(), index=table["string_id"].to_numpy(), dtype=object)
    if texts.index.has_duplicates:
        raise TraceError(f"{trace.path}: table strings: a string_id comes twice; copy the trace anew")
    return texts


def _splits(rebuilt: Rebuild, makers: Makers, region: npt.NDArray[np.int64]) -> pd.DataFrame:
    rows = rebuilt.splits["row"].to_numpy(np.int64)
    columns, owners = rebuilt.changes.columns, makers.owners
    comm, tgid = makers.comm(columns["comm_id"][rows]), columns["tgid"][rows]
    for_comm, for_tgid = comm.copy(), tgid.copy()
    region_id, region_kind = np.zeros(len(rows), np.uint64), np.full(len(rows), "", object)
    known = region[rows] != NO_REGION
    if known.any():
        owner = owners.owner[region[rows][known]]
        for_comm[known], for_tgid[known] = makers.comm(owners.comm_id[owner]), owners.tgid[owner]
        region_id[known], region_kind[known] = owners.region_id[owner], KIND_NAMES[owners.kind[owner]]
    return rebuilt.splits.assign(
        user=np.array(USER_NAMES, object)[makers.user[rows]],
        comm=comm,
        pid=columns["pid"][rows],
        tgid=tgid,
        stack_id=makers.stack[rows],
        name=makers.name[rows],
        for_comm=for_comm,
        for_tgid=for_tgid,
        region_id=region_id,
        region_kind=region_kind,
    )
