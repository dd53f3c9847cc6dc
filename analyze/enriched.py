"""Tables with everything joined: changes, splits, special pages, split frames and levels, with users, names and stacks as text.

Texts are dictionary-encoded columns: a stack stands once in memory, however many changes came through it. Docs: docs/tables.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from analyze.analysis import Analysis
from analyze.attribute import USER_NAMES
from analyze.words.plain_text import plain
from collect.schema import ChangeKind, Pte, Space

__all__ = ["ENRICHED", "attrs_text", "changes", "levels", "special_pages", "split_frames", "splits"]

LEVEL_NAMES = ("", "4K", "2M", "1G")
KIND_NAMES = tuple(kind.name.lower() for kind in ChangeKind)
SPACE_NAMES = tuple(space.name.lower() for space in Space)

ALIAS = "alias of its parent call"
"""In place of the API of a nested call, which has none."""

_CALLS = {
    ChangeKind.COLLAPSE: "collapse_large_pages",
    ChangeKind.HOTPLUG_ADD: "arch_add_memory",
    ChangeKind.HOTPLUG_REMOVE: "arch_remove_memory",
}
MAX_STACK_TEXT = 4000


def changes(analysis: Analysis) -> pa.Table:
    """One row a change, in the order of the trace."""
    columns, attribution = analysis.rebuilt.changes.columns, analysis.attribution
    call, stack = _calls_and_stacks(analysis, attribution.change_stack)
    alias = (columns["parent_id"] != 0) & (columns["stack_id"] == 0)
    call_code, call_texts = call
    texts = [*call_texts, ALIAS, *_CALLS.values()]
    codes = np.where(alias, len(call_texts), call_code)
    for i, kind in enumerate(_CALLS):
        codes[columns["kind"] == kind] = len(call_texts) + 1 + i
    return pa.table(
        {
            "ts_ns": columns["ts_ns"].astype(np.uint64),
            "duration_ns": columns["duration_ns"].astype(np.uint64),
            "kind": _named(columns["kind"], KIND_NAMES),
            "call": _texts(codes, texts),
            "user": _named(attribution.change_user, USER_NAMES),
            "name": _objects(attribution.change_name),
            "comm": _comms(analysis, columns["comm_id"]),
            "pid": columns["pid"],
            "tgid": columns["tgid"],
            "cpu": columns["cpu"],
            "call_id": columns["call_id"],
            "parent_id": columns["parent_id"],
            "space": _named(columns["space"], SPACE_NAMES),
            "address": columns["address"],
            "pfn": columns["pfn"],
            "n_pages": columns["n_pages"],
            "n_done": columns["n_done"],
            "set": _attrs(columns["mask_set"]),
            "cleared": _attrs(columns["mask_clr"]),
            "level_before": _named(columns["level_before"], LEVEL_NAMES),
            "level_first": _named(columns["level_first"], LEVEL_NAMES),
            "level_last": _named(columns["level_last"], LEVEL_NAMES),
            "has_exit": columns["has_exit"] != 0,
            "ret": columns["ret"],
            "stack": _texts(*stack),
        }
    )


def splits(analysis: Analysis) -> pa.Table:
    """One row a split, in order of effect. `pfn`: first page of the entry that was split; `page`: the one that caused it."""
    table = analysis.attribution.splits
    row = table["row"].to_numpy(np.int64)
    call, stack = _calls_and_stacks(analysis, table["stack_id"].to_numpy())
    return pa.table(
        {
            "ts_ns": table["ts_ns"].to_numpy().astype(np.uint64),
            "level": _named(table["level"].to_numpy(), LEVEL_NAMES),
            "pfn": table["pfn"].to_numpy().astype(np.uint64),
            "page": table["page"].to_numpy().astype(np.uint64),
            "attrs": _attrs(table["attrs"].to_numpy()),
            "call": _texts(*call),
            "user": _objects(table["user"].to_numpy(dtype=object)),
            "name": _objects(table["name"].to_numpy(dtype=object)),
            "comm": _objects(table["comm"].to_numpy(dtype=object)),
            "pid": table["pid"].to_numpy(),
            "tgid": table["tgid"].to_numpy(),
            "call_id": analysis.rebuilt.changes.columns["call_id"][row],
            "stack": _texts(*stack),
        }
    )


def special_pages(analysis: Analysis) -> pa.Table:
    """One row a page of a split 2M frame that at the end is not as its frame was as one entry, in order of page frame."""
    special = analysis.attribution.special
    since = np.maximum(special["since_ns"].to_numpy(np.int64), 0)
    _, stack = _calls_and_stacks(analysis, special["stack_id"].to_numpy())
    return pa.table(
        {
            "pfn": special["pfn"].to_numpy().astype(np.uint64),
            "frame": special["frame"].to_numpy().astype(np.uint64),
            "attrs": _attrs(special["attrs"].to_numpy()),
            "original": _attrs(special["original"].to_numpy()),
            "residue": special["residue"].to_numpy(bool),
            "user": _objects(special["user"].to_numpy(dtype=object)),
            "name": _objects(special["name"].to_numpy(dtype=object)),
            "comm": _objects(special["comm"].to_numpy(dtype=object)),
            "tgid": special["tgid"].to_numpy().astype(np.uint32),
            "region": _objects(special["region_kind"].to_numpy(dtype=object)),
            "region_id": special["region_id"].to_numpy().astype(np.uint64),
            "since_ns": since.astype(np.uint64),
            "stack": _texts(*stack),
        }
    )


def split_frames(analysis: Analysis) -> pa.Table:
    """One row a 2M frame that 4K entries map at the end."""
    frames = analysis.attribution.frames
    return pa.table(
        {
            "frame": frames["frame"].to_numpy().astype(np.uint64),
            "pfn": frames["pfn"].to_numpy().astype(np.uint64),
            "n_special": frames["n_special"].to_numpy().astype(np.uint32),
            "n_residue": frames["n_residue"].to_numpy().astype(np.uint32),
            "kept": frames["live"].to_numpy(bool),
            "split_by": _objects(frames["split_user"].to_numpy(dtype=object)),
        }
    )


def levels(analysis: Analysis) -> pa.Table:
    """Leaf entries of each size from each moment on: at START, then after each change that altered their numbers."""
    table = analysis.rebuilt.levels
    names = {"ts_ns": "ts_ns", "entries_4k": "k4", "entries_2m": "m2", "entries_1g": "g1"}
    return pa.table({name: table[column].to_numpy().astype(np.uint64) for name, column in names.items()})


ENRICHED: dict[str, Callable[[Analysis], pa.Table]] = {
    "changes": changes,
    "splits": splits,
    "special_pages": special_pages,
    "split_frames": split_frames,
    "levels": levels,
}
"""Every table of an export, by its name."""

Texts = tuple[npt.NDArray[np.int64], list[str]]
"""Codes, and the text of each."""


def _calls_and_stacks(analysis: Analysis, stack_ids: npt.NDArray[np.uint32]) -> tuple[Texts, Texts]:
    """What was called (the innermost telling frame) and the whole stack, innermost first, of each stack id."""
    distinct, place = np.unique(stack_ids, return_inverse=True)
    frames = [analysis.attribution.stack_frames(int(stack_id)) for stack_id in distinct]
    stacks = analysis.attribution.stacks
    called = [plain((stacks.landmarks(int(stack_id)) or [""])[0]) for stack_id in distinct]
    codes = place.reshape(-1).astype(np.int64)
    return (codes, called), (codes, [plain(" < ".join(one), MAX_STACK_TEXT) for one in frames])


def _comms(analysis: Analysis, ids: npt.NDArray[np.uint32]) -> pa.DictionaryArray:
    table = analysis.trace.table("strings")
    texts = dict(zip(table["string_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    distinct, place = np.unique(ids, return_inverse=True)
    return _texts(place.reshape(-1), [plain(texts.get(i, "")) for i in distinct.tolist()])


def attrs_text(word: int) -> str:
    """Names of the bits of an attribute word, in the order of `Pte`: "P RW NX"; bits without a name as a number."""
    named = [bit.name or "" for bit in Pte if word & bit]
    rest = word & ~sum(Pte)
    return " ".join([*named, *([hex(rest)] if rest else [])])


def _attrs(words: npt.NDArray[np.uint64]) -> pa.DictionaryArray:
    distinct, place = np.unique(words, return_inverse=True)
    return _texts(place.reshape(-1), [attrs_text(word) for word in distinct.tolist()])


def _named(codes: npt.NDArray[np.uint8], names: Sequence[str]) -> pa.DictionaryArray:
    return _texts(codes.astype(np.int64), list(names))


def _objects(values: npt.NDArray[np.object_]) -> pa.DictionaryArray:
    codes, distinct = pd.factorize(values)
    return _texts(codes, [plain(str(value)) for value in distinct])


def _texts(codes: npt.NDArray[np.int64], texts: list[str]) -> pa.DictionaryArray:
    """A dictionary column whose dictionary holds each text once and only those that occur."""
    used, place = np.unique(codes, return_inverse=True)
    distinct: dict[str, int] = {}
    at = np.array([distinct.setdefault(texts[code], len(distinct)) for code in used.tolist()], np.int32)
    indices = at[place.reshape(-1)] if len(used) else np.zeros(0, np.int32)
    return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int32()), pa.array(list(distinct), pa.string()))
