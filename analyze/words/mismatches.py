"""A mismatch in words: the page, the event, who made it, by which rule, and both answers with their attributes named."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from analyze.reconstruct import Rebuild
from analyze.rule_names import Rule
from analyze.stacks import Stacks, symbol
from analyze.words.terminal import clean, counted
from collect.schema import LEAF_PAGES, ChangeKind, Level, Pte

__all__ = ["MAX_FRAMES", "Told", "attribute_words", "change_words", "entry_words", "mask_words"]

MAX_FRAMES = 4
"""Frames of a stack that are printed; `--json` has all."""

_LEVELS = {Level.NONE: "hole", Level.K4: "4K", Level.M2: "2M", Level.G1: "1G"}
_SOFT = {"SOFT1": 1 << 9, "SOFT2": 1 << 10, "KERNEL_4K": 1 << 11}  # asm/pgtable_types.h, _PAGE_BIT_SOFTW1 to 3
_NAMES = {bit.name: int(bit) for bit in Pte if bit != Pte.NX} | _SOFT | {"NX": int(Pte.NX)}
_CHOKE = ("__change_page_attr_set_clr", "change_page_attr_set_clr", "cpa_process_alias", "change_page_attr_set", "change_page_attr_clear")  # fmt: skip
_KINDS = {
    ChangeKind.COLLAPSE: "large entry put back",
    ChangeKind.HOTPLUG_ADD: "memory added",
    ChangeKind.HOTPLUG_REMOVE: "memory removed",
}
_SEEN = {
    ("before", "level"): "an earlier change is missing: no rule explains the state before this one",
    ("before", "attributes"): "an earlier change is missing: no rule explains the state before this one",
    ("after", "level"): "split or kept",
    ("after", "attributes"): "masks, static protections, G without P",
}
_SOURCES = {"level": "__should_split_large_page", "attributes": "__change_page_attr"}


def attribute_words(attrs: int) -> str:
    """`P RW A D G NX`; bits without a name as one number."""
    names = [str(name) for name, bit in _NAMES.items() if attrs & bit]
    rest = attrs & ~sum(_NAMES.values())
    return " ".join([*names, *([f"{rest:#x}"] if rest else [])]) or "none"


def entry_words(level: int, attrs: int) -> str:
    """`2M: P RW A D G NX`, `hole`."""
    known = Level(level) if level in _LEVELS else None
    name = _LEVELS[known] if known is not None else f"level {level}"
    return name if known == Level.NONE else f"{name}: {attribute_words(attrs)}"


def mask_words(mask_set: int, mask_clr: int) -> str:
    """`-RW +NX`: cleared, then set; a bit of both masks ends up set."""
    cleared = [f"-{name}" for name in attribute_words(mask_clr & ~mask_set).split() if mask_clr & ~mask_set]
    added = [f"+{name}" for name in attribute_words(mask_set).split() if mask_set]
    return " ".join([*cleared, *added]) or "no masks"


def change_words(change: dict[str, Any]) -> list[str]:
    """A change of `Told.change` as lines for a terminal: what, when, by whom, through what."""
    what = f"{change['api']} {change['masks']}".strip()
    lines = [
        f"{clean(what, 70)}",
        f"on {counted(change['n_pages'], 'page')} from pfn {change['first_pfn']:#x}, {change['seconds']:.6f} s after the start",
        f"call {change['call_id']}, {clean(change['comm'], 16)} (pid {change['pid']})",
    ]
    if change["n_done"] != change["n_pages"]:
        lines.append(f"failed ({change['ret']}) after {counted(change['n_done'], 'page')}")
    return [*lines, *[f"  {clean(frame)}" for frame in change["stack"][:MAX_FRAMES]]]


class Told:
    """Says of a rebuilt trace what a change was, and which change touched a page last."""

    def __init__(self, rebuilt: Rebuild, stacks: Stacks, start_ns: int) -> None:
        self._rebuilt = rebuilt
        self._stacks = stacks
        self._start_ns = start_ns

    def change(self, row: int) -> dict[str, Any]:
        """A row of changes: call_id, seconds (after the start), api, masks, first_pfn, n_pages, n_done, ret, comm, pid,
        stack (of the primary call, where it is nested in one), nested.
        """
        changes = self._rebuilt.changes
        cell = {name: changes.columns[name][row].item() for name in ("call_id", "mask_set", "mask_clr", "ret", "pid")}
        primary = self._primary(row)
        stack = self._stacks.frames(int(changes.columns["stack_id"][primary]))
        kind = ChangeKind(int(changes.columns["kind"][row]))
        return {
            "call_id": cell["call_id"],
            "seconds": round((int(changes.exit_ns[row]) - self._start_ns) / 1e9, 9),
            "api": _KINDS.get(kind) or _api(stack),
            "masks": mask_words(cell["mask_set"], cell["mask_clr"]) if kind == ChangeKind.CPA else "",
            "first_pfn": int(changes.first_pfn[row]),
            "n_pages": int(changes.n_pages[row]),
            "n_done": int(changes.n_done[row]),
            "ret": cell["ret"],
            "comm": self._comms.get(int(changes.columns["comm_id"][row]), ""),
            "pid": cell["pid"],
            "nested": primary != row,
            "stack": stack,
        }

    def of_call(self, call_id: int) -> dict[str, Any] | None:
        """The change of a call; None where it is not in the trace."""
        rows = np.flatnonzero(self._rebuilt.changes.columns["call_id"] == np.uint64(call_id))
        return self.change(int(rows[0])) if len(rows) else None

    def mismatch(self, row: dict[str, Any]) -> dict[str, Any]:
        """What a row of `rule_mismatches` does not say in words: rule, source, predicted, observed, change."""
        when = "before" if row["when"] == "before" else "after"
        collapsed = self._rebuilt.changes.columns["kind"][row["row"]] == ChangeKind.COLLAPSE
        source = Rule.COLLAPSED_2M.source if collapsed and when == "after" else _SOURCES[row["what"]]
        text = Rule.COLLAPSED_2M.text if collapsed and when == "after" else _SEEN[when, row["what"]]
        return {
            "rule": text,
            "source": source,
            "predicted": entry_words(row["predicted_level"], row["predicted_attrs"]),
            "observed": entry_words(row["observed_level"], row["observed_attrs"]),
            "change": self.change(row["row"]),
        }

    def run(self, run: dict[str, int]) -> dict[str, Any]:
        """Of a run of pages that differ from a snapshot: both answers in words, the rule in question, and what touched the
        first page last: a change of it (which left it as it was rebuilt), and a split of a leaf above it.
        """
        what = "level" if run["rebuilt_level"] != run["snapshot_level"] else "attributes"
        change, split = self.last_change(run["pfn"]), self.last_split(run["pfn"])
        return {
            "rebuilt": entry_words(run["rebuilt_level"], run["rebuilt_attrs"]),
            "snapshot": entry_words(run["snapshot_level"], run["snapshot_attrs"]),
            "rule": _SEEN["after", what],
            "source": _SOURCES[what],
            "last_change": None if change is None else self.change(change),
            "last_split": None if split is None else self.change(split),
        }

    def last_change(self, pfn: int) -> int | None:
        """Row of the last change in order of effect that was asked of a page; None where none was."""
        changes = self._rebuilt.changes
        ranges = changes.pfns_start[1:] == changes.pfns_start[:-1]
        inside = ranges & (changes.first_pfn <= pfn) & (pfn < changes.first_pfn + changes.n_pages)
        if len(changes.pfns):
            at = np.flatnonzero(changes.pfns == pfn)
            inside[np.searchsorted(changes.pfns_start, at, "right") - 1] = True
        entry, leave = changes.columns["ts_ns"], changes.exit_ns
        window, frame = self._rebuilt.window, pfn // LEAF_PAGES[Level.M2]
        inside &= changes.direct & (leave > window.lo[frame]) & (entry < window.hi[frame])
        rows = np.flatnonzero(inside)
        return int(rows[self._place[rows].argmax()]) if len(rows) else None

    def last_split(self, pfn: int) -> int | None:
        """Row of the change that last split a leaf above a page, by the rules."""
        splits = self._rebuilt.splits
        size = np.array(LEAF_PAGES, np.int64)[splits["level"].to_numpy(np.int64)]
        first = splits["pfn"].to_numpy(np.int64)
        above = np.flatnonzero((first <= pfn) & (pfn < first + size))
        return int(splits["row"].iloc[above[-1]]) if len(above) else None

    @cached_property
    def _place(self) -> npt.NDArray[np.int64]:
        order = self._rebuilt.changes.order
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place

    @cached_property
    def _comms(self) -> dict[int, str]:
        table = self._rebuilt.trace.table("strings")
        return dict(zip(table["string_id"].to_pylist(), table["text"].to_pylist(), strict=True))

    def _primary(self, row: int) -> int:
        """The row of the primary call that a change is nested in, or its own."""
        columns = self._rebuilt.changes.columns
        for _ in range(8):  # a forged trace may nest in a ring
            parent = columns["parent_id"][row]
            if parent == 0 or columns["stack_id"][row] != 0:
                break
            rows = np.flatnonzero(columns["call_id"] == parent)
            if not len(rows):
                break
            row = int(rows[0])
        return row


def _api(stack: list[str]) -> str:
    """The function that asked for a change: the innermost one that is not the choke point's own."""
    names = [symbol(frame) for frame in stack]
    return next((name for name in names if name not in _CHOKE), "unknown caller")
