"""Walks the kernel's own page tables through /proc/kcore: the ground truth of every trace.

The rules of a walk are those of `lookup_address_in_pgd` (arch/x86/mm/pat/set_memory.c): an entry above the last level
that is not zero but not present is a leaf of its level; its page frame number is stored inverted (L1TF,
arch/x86/include/asm/pgtable-invert.h), so frames are derived from position wherever position tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from collect.errors import HostError
from collect.kcore import KERNEL_IMAGE_BASE, Kcore
from collect.schema import LEAF_PAGES, Level

__all__ = ["Leaves", "Walker", "normalise", "runs"]

U64 = npt.NDArray[np.uint64]
PRESENT, LARGE = 1, 0x80
PFN_BITS = 0x000F_FFFF_FFFF_F000
# Address bits of a leaf entry by level. Below them a large entry holds its PAT bit; one that is not present holds nothing
# but address bits there, inverted like the rest (asm/pgtable.h: pfn_pte, which knows no size).
ADDRESS_BITS = np.array([PFN_BITS, PFN_BITS, PFN_BITS & ~((1 << 21) - 1), PFN_BITS & ~((1 << 30) - 1)], np.uint64)
GIG_PAGES = LEAF_PAGES[Level.G1]


class Leaves(NamedTuple):
    """Leaf entries in order of address: first page frame, `Level`, normalised attributes."""

    pfn: U64
    level: npt.NDArray[np.uint8]
    attrs: U64


def normalise(entry: U64, level: npt.NDArray[np.uint8], physical_mask: int) -> U64:
    """Raw leaf entries as attributes in the format of a 4K entry (see `schema.Pte`); an empty entry stays 0."""
    large = level > Level.K4
    pat = (entry >> np.uint64(12) & entry & np.uint64(PRESENT)) << np.uint64(7)
    attrs = entry & ~np.uint64(physical_mask & PFN_BITS)
    return np.where(large, attrs & ~np.uint64(LARGE) | pat, attrs)


def runs(pfn: U64, level: npt.NDArray[np.uint8], *keys: U64) -> npt.NDArray[np.int64]:
    """Where runs begin: positions at which leaves stop being neighbours of equal level and keys."""
    if len(pfn) == 0:
        return np.empty(0, np.int64)
    pages = np.array(LEAF_PAGES, np.uint64)[level]
    cut = np.ones(len(pfn), np.bool_)
    cut[1:] = (pfn[1:] != pfn[:-1] + pages[:-1]) | (level[1:] != level[:-1])
    for key in keys:
        cut[1:] |= key[1:] != key[:-1]
    return np.flatnonzero(cut)


class Walker:
    """Reads leaves of the direct map and of the kernel image's mapping.

    Args:
        kcore: an opened /proc/kcore.
        physical_mask: the kernel's `physical_mask` (without the encryption bit).
    """

    def __init__(self, kcore: Kcore, physical_mask: int) -> None:
        self._kcore = kcore
        self._n_gigs = 0
        self._mask = physical_mask & PFN_BITS
        self.physical_mask = physical_mask

    @property
    def n_gigs(self) -> int:
        """1 GiB ranges of the direct map: up to the highest memory there has been since the walker was made."""
        self._n_gigs = max(self._n_gigs, -(-self._kcore.max_pfn // GIG_PAGES))
        return self._n_gigs

    def reach(self, end_pfn: int) -> None:
        """Walk as far as this from now on: memory has come that /proc/kcore may not list yet (it does once online)."""
        self._n_gigs = max(self.n_gigs, -(-end_pfn // GIG_PAGES))

    def direct_map(self, between: Callable[[], object] | None = None) -> Leaves:
        """Every leaf of the direct map; `between` is called after each 1 GiB range."""
        return self.gigs(np.arange(self.n_gigs, dtype=np.uint64), between)

    def mapped_gigs(self, limit: int) -> int:
        """1 GiB ranges up to the last one that has an entry, of the first `limit`: memory may be mapped that is no RAM
        (persistent memory) or that is not online (a DIMM that was added and waits), and /proc/kcore lists neither.
        """
        last, at = 0, self._kcore.page_offset & ~((1 << 39) - 1)
        end = self._kcore.page_offset + (limit << 30)
        while at < end:
            if self._kcore.paging_levels == 5 and not self._kcore.read_u64(self._kcore.top_pgt + (at >> 48 & 511) * 8):
                at = (at | (1 << 48) - 1) + 1  # 256 TB at once: the area may span petabytes
                continue
            table = self._upper_table_at(at)
            if table is not None:
                gigs = (at - self._kcore.page_offset >> 30) + np.flatnonzero(self._kcore.table(table))
                gigs = gigs[(gigs >= 0) & (gigs < limit)]
                last = int(gigs.max()) + 1 if len(gigs) else last
            at += 1 << 39
        return last

    def gigs(self, gigs: U64, between: Callable[[], object] | None = None) -> Leaves:
        """The leaves of whole 1 GiB ranges of the direct map, given by number; `between` is called after each."""
        parts = []
        for gig in gigs.tolist():
            parts.append(self._gig(self._kcore.page_offset + (gig << 30), gig * GIG_PAGES))
            if between:
                between()
        return _join(parts)

    def frame(self, frame: int) -> Leaves:
        """The leaves of one 2 MiB frame of the direct map; of the whole 1 GiB range where one entry maps it."""
        address = self._kcore.page_offset + (frame << 21)
        entry = self._upper_entry(address)
        if _is_leaf(entry) or entry == 0:
            return self.gigs(np.array([frame >> 9], np.uint64))
        pmd = self._table(entry)[frame & 511 : (frame & 511) + 1]
        return _join(self._pmds(pmd, frame * 512))

    def frame_at(self, address: int) -> int | None:
        """Page frame number behind any kernel address; None where nothing is mapped."""
        entry, level = self._upper_entry(address), Level.G1
        for level, shift in ((Level.G1, 30), (Level.M2, 21), (Level.K4, 12)):
            if entry == 0 or not entry & PRESENT:
                return None
            if entry & LARGE or level == Level.K4:
                break
            table = self._kcore.page_offset + (entry & self._mask)
            entry = self._kcore.read_u64(table + (address >> (shift - 9) & 511) * 8)
        if not entry & PRESENT:
            return None
        pfn = int(frames_of(np.array([entry], np.uint64), int(level), self.physical_mask)[0])
        return pfn + (address >> 12) % LEAF_PAGES[level]

    def kernel_image(self) -> Leaves:
        """Every leaf of the kernel image's own mapping, with the physical frames that the entries name."""
        entry = self._upper_entry(KERNEL_IMAGE_BASE)
        if _is_leaf(entry) or entry == 0:
            raise HostError("the kernel image's mapping has no 2M entries; this kernel's layout is unknown")
        parts = self._pmds(self._table(entry), None)
        return _join(parts)

    def _table(self, entry: int) -> U64:
        return self._table_at(self._kcore.page_offset + (entry & self._mask))

    def _table_at(self, address: int) -> U64:
        table = self._kcore.table(address)
        # read_kcore fills with zeros what it could not copy; no table of ours is ever empty
        if not table.any():
            raise HostError("/proc/kcore gave an empty page table (offline or poisoned memory?); try again")
        return table

    def _upper_entry(self, address: int) -> int:
        """The PUD entry that maps an address (1 GiB), 0 for a hole."""
        table = self._upper_table_at(address)
        return 0 if table is None else self._kcore.read_u64(table + (address >> 30 & 511) * 8)

    def _upper_table_at(self, address: int) -> int | None:
        table = self._kcore.top_pgt
        shifts = (48, 39) if self._kcore.paging_levels == 5 else (39,)
        for shift in shifts:
            entry = self._kcore.read_u64(table + (address >> shift & 511) * 8)
            if not entry & PRESENT:
                return None
            table = self._kcore.page_offset + (entry & self._mask)
        return table

    def _gig(self, address: int, first_pfn: int) -> Leaves:
        entry = self._upper_entry(address)
        if entry == 0:
            return _leaves([], Level.G1, [], self.physical_mask)
        if _is_leaf(entry):
            return _leaves([first_pfn], Level.G1, [entry], self.physical_mask)
        return _join(self._pmds(self._table(entry), first_pfn))

    def _pmds(self, pmds: U64, first_pfn: int | None) -> list[Leaves]:
        """Leaves under consecutive PMD entries; `first_pfn` None: frames from the entries, not from position."""
        leaf = (pmds != 0) & ((pmds & np.uint64(PRESENT) == 0) | (pmds & np.uint64(LARGE) != 0))
        table = (pmds != 0) & ~leaf
        at = np.flatnonzero(leaf)
        parts = [self._under(pmds[at], at * 512, Level.M2, first_pfn)]
        for i in np.flatnonzero(table).tolist():
            # Only in the direct map is no table ever empty: modules may lie in the kernel image's range, and go.
            read = self._kcore.table if first_pfn is None else self._table_at
            ptes = read(self._kcore.page_offset + (int(pmds[i]) & self._mask))
            used = np.flatnonzero(ptes)
            parts.append(self._under(ptes[used], i * 512 + used, Level.K4, first_pfn))
        return parts

    def _under(self, entries: U64, offsets: npt.NDArray[np.int64], level: Level, first_pfn: int | None) -> Leaves:
        if first_pfn is not None:
            pfns = (offsets + first_pfn).astype(np.uint64)
        else:
            pfns = frames_of(entries, level, self.physical_mask)
        return _leaves(pfns, level, entries, self.physical_mask)


def frames_of(entries: U64, level: int | npt.NDArray[np.uint8], physical_mask: int) -> U64:
    """Page frame numbers that leaf entries name; those of non-present entries are stored inverted."""
    seen = np.where(entries & np.uint64(PRESENT) == 0, ~entries, entries)
    return (seen & ADDRESS_BITS[level] & np.uint64(physical_mask)) >> np.uint64(12)


def _is_leaf(entry: int) -> bool:
    return entry != 0 and (not entry & PRESENT or bool(entry & LARGE))


def _leaves(pfns: npt.ArrayLike, level: Level, entries: npt.ArrayLike, physical_mask: int) -> Leaves:
    pfn, entry = np.asarray(pfns, np.uint64), np.asarray(entries, np.uint64)
    levels = np.full(len(pfn), level, np.uint8)
    return Leaves(pfn, levels, normalise(entry, levels, physical_mask))


def _join(parts: list[Leaves]) -> Leaves:
    if not parts:
        return Leaves(np.empty(0, np.uint64), np.empty(0, np.uint8), np.empty(0, np.uint64))
    pfn, level, attrs = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(pfn, kind="stable")
    return Leaves(pfn[order], level[order], attrs[order])
