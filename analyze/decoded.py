"""Tables of a trace as DataFrames for people: codes by name, ids of texts as the texts, rows of a time alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.state_summary import LEVEL_NAMES
from collect.errors import TraceError
from collect.schema import (
    SCOPE_SPLIT,
    TABLES,
    ChangeKind,
    Moment,
    PageEvent,
    RegionEvent,
    RegionKind,
    Space,
    Tier,
)
from collect.trace import Trace

__all__ = ["TEXTS", "category", "decoded_table", "level_category"]

TEXTS = {"comm_id": "comm", "name_id": "name"}
"""Columns that hold ids of strings, and what they are called with the strings in their place."""

_NONE = "none"
_KINDS: dict[tuple[str, str], type[IntEnum]] = {
    ("changes", "kind"): ChangeKind,
    ("regions", "kind"): RegionKind,
    ("regions", "event"): RegionEvent,
    ("pages", "event"): PageEvent,
}
_ENUMS: dict[str, type[IntEnum]] = {"space": Space, "moment": Moment, "tier": Tier}


def _names_of(enum: type[IntEnum]) -> dict[int, str]:
    return {int(code): code.name.lower() for code in enum}


@cache
def _codes_of(table: str, column: str) -> Mapping[int, str] | None:
    """Code -> name of a column of codes; None for any other column."""
    if column == "level" or column.startswith("level_") or column == "map_level":
        return LEVEL_NAMES
    if column == "scope":
        return {0: _NONE, SCOPE_SPLIT: "split", **_names_of(RegionKind)}
    enum = _KINDS.get((table, column)) or _ENUMS.get(column)
    return _names_of(enum) if enum is not None else None


def category(
    codes: npt.NDArray[np.uint8], names: Mapping[int, str], where: str, *, ordered: bool = False
) -> pd.Categorical[str]:
    """Codes by name, in order of the codes. Raises TraceError for one without a name."""
    places = np.full(256, -1, np.int8)
    places[list(names)] = np.arange(len(names))
    found = places[codes]
    if len(found) and found.min() < 0:
        raise TraceError(
            f"{where} holds code {codes[int(found.argmin())]}, which this format does not know; "
            "install a newer directmap or copy the trace anew"
        )
    return pd.Categorical.from_codes(found, categories=pd.Index(list(names.values())), ordered=ordered)


def level_category(levels: npt.NDArray[np.uint8], where: str) -> pd.Categorical[str]:
    """Levels as "hole" < "4K" < "2M" < "1G"."""
    return category(levels, LEVEL_NAMES, where, ordered=True)


def decoded_table(
    trace: Trace, name: str, columns: Sequence[str] | None = None, between: tuple[int, int] | None = None
) -> pd.DataFrame:
    """A table of a trace in order of time, decoded.

    Args:
        columns: as `collect.schema` names them, `comm` for `comm_id` and `name` for `name_id`; all if not given.
        between: only rows with ts_ns in it, both ends included; of the files only what may hold such rows is read.
    Raises:
        TraceError: the trace cannot be read, or holds a code or an id that means nothing.
        KeyError: no such table or column.
    """
    stored = {TEXTS.get(column, column): column for column in TABLES[name].names}
    wanted = list(stored) if columns is None else [TEXTS.get(column, column) for column in columns]
    unknown = [column for column in wanted if column not in stored]
    if unknown:
        raise KeyError(f"table {name} has no column {unknown[0]!r}; it has {', '.join(stored)}")
    timed = "ts_ns" in stored
    read = [stored[column] for column in wanted]
    if timed and "ts_ns" not in read:
        read.append("ts_ns")
    table = trace.table(name, read, between=between if timed else None)
    ts = table["ts_ns"].to_numpy() if timed else np.empty(0, np.uint64)
    if timed:
        keep = np.arange(len(ts))
        if between is not None:
            first, last = (np.uint64(min(max(ns, 0), (1 << 64) - 1)) for ns in between)
            keep = np.flatnonzero((ts >= first) & (ts <= last))
        keep = keep[np.argsort(ts[keep], kind="stable")]
        if len(keep) != len(ts) or (np.diff(keep) != 1).any():
            table = table.take(keep)
    texts = _texts(trace) if any(stored[column] in TEXTS for column in wanted) else None
    found = {}
    for column in wanted:
        values = table[stored[column]].to_numpy()
        names = _codes_of(name, column)
        if names is not None:
            where = f"{trace.path}: table {name}: {column}"
            found[column] = category(values, names, where, ordered=names is LEVEL_NAMES)
        elif stored[column] in TEXTS and texts is not None:
            found[column] = _by_id(values, texts)
        elif column == "counter":
            found[column] = pd.Categorical(values)
        else:
            found[column] = values
    return pd.DataFrame(found, columns=wanted)


def _texts(trace: Trace) -> pd.Series[str]:
    table = trace.table("strings")
    return pd.Series(table["text"].to_pylist(), index=table["string_id"].to_numpy(), dtype=object)


def _by_id(ids: npt.NDArray[np.uint32], texts: pd.Series[str]) -> pd.Categorical[str]:
    """Texts by their ids; "" for 0 and for an id that stands for nothing."""
    used, place = np.unique(ids, return_inverse=True)
    unique = texts[~texts.index.duplicated()]
    words = unique.reindex(used).fillna("").to_numpy(object)
    names, code = np.unique(words.astype(str), return_inverse=True)
    return pd.Categorical.from_codes(code.reshape(-1)[place.reshape(-1)], categories=pd.Index(names.astype(object)))
