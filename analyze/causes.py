"""What keeps frames split, summed up: by user, module or program name, process, stack or region."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.before_start import ATTACHING, BEFORE, KERNEL_IMAGE, KFENCE
from analyze.stacks import Stacks
from analyze.users import USER_NAMES, User

__all__ = ["OWN", "By", "cause_names", "group_of", "label"]

OWN = USER_NAMES[User.COLLECTOR]

EARLIER = "made before the recording"


class By(StrEnum):
    """What makes two pages, or two splits, of one user one cause."""

    USER = "user"
    NAME = "name"
    PROCESS = "process"
    STACK = "stack"
    REGION = "region"


def label(rows: pd.DataFrame, by: By, stacks: Stacks) -> npt.NDArray[np.object_]:
    """What each row is called. Takes columns user, name, comm, stack_id; for REGION region_id, region_kind too.

    Where there is no name it is the process that tells, in brackets; of before START, what is known of such pages.
    """
    name, comm = rows["name"].to_numpy(object), rows["comm"].to_numpy(object)
    before = (rows["user"] == BEFORE).to_numpy(bool)
    if by == By.USER:
        made: npt.NDArray[np.object_] = np.full(len(rows), "", object)
    elif by == By.PROCESS:
        made = _distinct(comm, lambda text: _process(str(text)) or "unknown process")
    elif by == By.STACK:
        made = _distinct(
            rows["stack_id"].to_numpy(np.int64), lambda at: " < ".join(stacks.landmarks(int(at))) or "no stack"
        )
    else:
        made = np.where(
            name == "", _distinct(comm, lambda text: f"({_process(str(text))})" if text else "(unknown)"), name
        )
        if by == By.REGION:
            region, kind = rows["region_id"].to_numpy(np.uint64), rows["region_kind"].to_numpy(object)
            known = region != 0
            made[known] = _of_regions(made[known], kind[known], region[known])
    return np.where(before, np.where(name == "", EARLIER, name), made)


def _of_regions(
    name: npt.NDArray[np.object_], kind: npt.NDArray[np.object_], region: npt.NDArray[np.uint64]
) -> npt.NDArray[np.object_]:
    """Name, kind and number of each region; its name is that of its first row."""
    codes, ids = pd.factorize(region)
    first = np.full(len(ids), len(codes), np.int64)
    np.minimum.at(first, codes, np.arange(len(codes)))
    texts = np.array([f"{name[i]}, {kind[i]} {number}" for i, number in zip(first, ids.tolist(), strict=True)], object)
    return texts[codes]


def group_of(user: str, name: str) -> str:
    """Of a cause: "own", "fixed" (cannot go away), "unknown" (made before START) or "known"."""
    if user == OWN or name == ATTACHING:
        return "own"
    if user == BEFORE:
        return "fixed" if name in (KERNEL_IMAGE, KFENCE) else "unknown"
    return "known"


def cause_names(
    user: npt.NDArray[np.object_], labels: npt.NDArray[np.object_]
) -> tuple[npt.NDArray[np.int64], pd.DataFrame]:
    """Number of the cause of each row, and the causes: user, cause, group; numbered as they come first."""
    of_user, users = pd.factorize(user)
    of_label, texts = pd.factorize(labels)
    pair, distinct = pd.factorize(of_user.astype(np.int64) * max(len(texts), 1) + of_label)
    codes: npt.NDArray[np.int64] = pair.astype(np.int64)
    at = np.asarray(distinct, np.int64)
    table = pd.DataFrame(
        {"user": users[at // max(len(texts), 1)], "cause": texts[at % max(len(texts), 1)]}, dtype=object
    )
    table["group"] = [group_of(str(u), str(c)) for u, c in zip(table["user"], table["cause"], strict=True)]
    return codes, table


def _process(comm: str) -> str:
    """A kworker's name without its CPU and number: workers do what they are told, whichever it is."""
    return "kworker" if comm.startswith("kworker/") else comm


def _distinct(values: npt.NDArray[Any], text: Callable[[Any], str]) -> npt.NDArray[np.object_]:
    """The text of each value, worked out once for equal ones."""
    codes, distinct = pd.factorize(values)
    texts: npt.NDArray[np.object_] = np.array([text(value) for value in distinct] or [""], object)
    return texts[codes]
