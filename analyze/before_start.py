"""What can be said of special pages that nobody made while we recorded: what lies on them, and since when they are so."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from analyze.reconstruct import Rebuild
from collect.schema import ATTRS_HARDWARE, LEAF_PAGES, Level, Moment, Pte, Space

__all__ = ["ATTACHING", "BEFORE", "KERNEL_IMAGE", "KFENCE", "names_before", "split_while_attaching"]

BEFORE = "before"
"""In place of a user: made before the recording started."""

KERNEL_IMAGE = "kernel image"
"""Name of pages of the kernel's own text and rodata: they cannot go away (arch/x86/mm/init_64.c: mark_rodata_ro)."""
KFENCE = "KFENCE pool"
"""Name of pages of KFENCE's pool, which is in 4K entries by design (asm/kfence.h: arch_kfence_init_pool)."""
ATTACHING = "while attaching"
"""Name of pages that were as their frame before our probes were attached, and no longer when the recording started."""

_HARDWARE = np.uint64(ATTRS_HARDWARE)
_G, _RW, _NX = (np.uint64(int(bit)) for bit in (Pte.G, Pte.RW, Pte.NX))
_LEAF_PAGES = np.array(LEAF_PAGES, np.int64)


def names_before(rebuilt: Rebuild, special: pd.DataFrame) -> npt.NDArray[np.object_]:
    """For pages with the columns pfn, original: one of the names above, or "" for made earlier by we do not know whom."""
    pfn = special["pfn"].to_numpy(np.int64)
    memory = rebuilt.trace.manifest["memory"]
    name = np.full(len(pfn), "", object)
    before, level = _at_moment(rebuilt, Moment.BEFORE_ATTACH, pfn)
    as_frame = (before ^ special["original"].to_numpy(np.uint64)) & ~(_HARDWARE | _G) == 0
    name[as_frame & (level > 0)] = ATTACHING
    for key, what in (("kfence_pool", KFENCE), ("rodata", KERNEL_IMAGE)):
        pair = memory.get(key)
        if pair:
            name[(pfn >= pair[0]) & (pfn < pair[1])] = what
    name[_in_text(rebuilt, pfn)] = KERNEL_IMAGE
    return name


def split_while_attaching(rebuilt: Rebuild, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Of 2M frames (pfn >> 9) that are split: those in one larger entry before our probes were attached."""
    _, level = _at_moment(rebuilt, Moment.BEFORE_ATTACH, frames * LEAF_PAGES[Level.M2])
    return np.asarray(level >= Level.M2)


def _in_text(rebuilt: Rebuild, pfn: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Pages that the kernel's high mapping has executable and not writable: its text, and not what was set free around it."""
    attrs, level = _at_moment(rebuilt, Moment.START, pfn, Space.KERNEL_IMAGE)
    return np.asarray((level > 0) & (attrs & (_RW | _NX) == 0))


def _at_moment(
    rebuilt: Rebuild, moment: Moment, pfn: npt.NDArray[np.int64], space: Space = Space.DIRECT_MAP
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Attributes and Level of the leaf that maps each page in a snapshot; 0 and 0 for a hole, or where there is none."""
    rows = rebuilt.snapshots.rows(moment, space)
    if rows is None:
        return np.zeros(len(pfn), np.uint64), np.zeros(len(pfn), np.uint8)
    first = rows["pfn"].astype(np.int64)
    order = np.argsort(first, kind="stable")
    level = np.minimum(rows["level"][order], np.uint64(max(Level))).astype(np.int64)
    at = np.maximum(np.searchsorted(first[order], pfn, "right") - 1, 0)
    within = pfn - first[order][at]
    inside = (within >= 0) & (
        within // np.maximum(_LEAF_PAGES[level][at], 1) < rows["n_leaves"][order][at].astype(np.int64)
    )
    attrs = np.where(inside, rows["attrs"][order][at], np.uint64(0))
    return attrs, np.where(inside, level[at], 0).astype(np.uint8)
