"""How a change of page attributes changes the direct map: `__change_page_attr_set_clr`, rule by rule.

Source: arch/x86/mm/pat/set_memory.c ("sm"), the same from Linux 5.10 to 7.3; functions are named where a rule is.
Attributes are in the form of a 4K entry throughout (`collect.schema.Pte`), so the kernel's conversions between the
formats of large and small entries fall away.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.entries import (
    FRAME,
    FRAME_SHIFT,
    GIGA,
    GIGA_SHIFT,
    RODATA_END,
    RODATA_FIRST,
    Entries,
    attr_code,
    met,
    split_frame,
    split_giga,
)
from analyze.holes import fill, pages_to_hole
from analyze.jit import kernel, signed
from analyze.rule_names import Rule
from collect.schema import Level, Pte

__all__ = ["ATTRS_OVERFLOW", "LOG_FULL", "SplitLog", "Window", "change_range", "new_log", "no_window", "split_leaf"]

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)

ATTRS_OVERFLOW = -1
"""`change_range` ran out of attribute codes: the trace is forged."""
LOG_FULL = -2
"""`change_range` found no room in the split log."""

_P = np.uint64(int(Pte.P))
_RW = np.uint64(int(Pte.RW))
_G = np.uint64(int(Pte.G))
_PAT = np.uint64(int(Pte.PAT))
_ZERO = np.uint64(0)
_KERNPG_TABLE = np.uint64(int(Pte.P | Pte.RW | Pte.A | Pte.D))  # asm/pgtable_types.h, without the encryption bit

# What becomes of a large leaf; the number is that of its Rule, with that of its level: Rule(2 * what + (level == 1G)).
_KEEP, _REWRITE, _SPLIT, _SPLIT_FORCED, _SPLIT_RODATA, _SPLIT_STATIC = range(6)

_SAME_4K, _WRITTEN_4K, _RODATA_4K = int(Rule.SAME_4K), int(Rule.WRITTEN_4K), int(Rule.RODATA_4K)
_GLOBAL_LOST, _LARGE_ABSENT, _ABSENT_SPLIT = int(Rule.GLOBAL_LOST), int(Rule.LARGE_ABSENT), int(Rule.ABSENT_SPLIT)
_PAT_LARGE, _LEFT_SPLIT, _NO_MASKS = int(Rule.PAT_LARGE), int(Rule.LEFT_SPLIT), int(Rule.NO_MASKS)
_HOLE_PASSED, _HOLE_FILLED = int(Rule.HOLE_PASSED), int(Rule.HOLE_FILLED)


class SplitLog(NamedTuple):
    """Splits in the order in which they took effect; `n[0]` are filled."""

    row: npt.NDArray[np.int64]  # row of the change that caused it
    ts_ns: npt.NDArray[np.int64]  # exit of that change
    pfn: npt.NDArray[np.int64]  # first page of the leaf that was split
    page: npt.NDArray[np.int64]  # the page whose change split it
    level: npt.NDArray[np.uint8]  # Level that was split: 3 (1G -> 2M) or 2 (2M -> 4K)
    attrs: npt.NDArray[np.uint64]  # of the leaf that was split
    n: npt.NDArray[np.int64]


class Window(NamedTuple):
    """Per 2M frame, the times between which changes count; arrays of length 0 let every change count."""

    lo: npt.NDArray[np.int64]  # a change counts if its exit comes after this
    hi: npt.NDArray[np.int64]  # and its entry before this


def new_log(capacity: int) -> SplitLog:
    """An empty log. One map needs no more than a cell per 2M frame and 1G range, while nothing collapses."""
    return SplitLog(
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.int64),
        np.empty(capacity, np.uint8),
        np.empty(capacity, np.uint64),
        np.zeros(1, np.int64),
    )


def no_window() -> Window:
    """The window that lets every change count."""
    return Window(np.empty(0, np.int64), np.empty(0, np.int64))


@kernel
def _changed(value: np.uint64, mask_set: np.uint64, mask_clr: np.uint64) -> np.uint64:
    """Masks applied; an entry that is not present loses G (sm: pgprot_clear_protnone_bits)."""
    value = (value & ~mask_clr) | mask_set
    if value & _P == _ZERO:
        value &= ~_G
    return value


@kernel
def _changed_large(value: np.uint64, mask_set: np.uint64, mask_clr: np.uint64) -> np.uint64:
    """The same for a large leaf, which loses PAT with P too.

    Its PAT bit is bit 12, where one that is not present holds a bit of the inverted page frame number (asm/pgtable.h:
    pfn_pte, which knows no size; pmd_flags_mask takes bit 12 for an address where PSE is not set).
    """
    value = _changed(value, mask_set, mask_clr)
    if value & _P == _ZERO:
        value &= ~_PAT
    return value


@kernel
def _in_rodata(m: Entries, first: int, n_pages: int) -> bool:
    return first < m.meta[RODATA_END] and first + n_pages > m.meta[RODATA_FIRST]  # type: ignore[no-any-return]


@kernel
def _decide(
    m: Entries,
    old: np.uint64,
    first: int,
    size: int,
    page: int,
    rest: int,
    mask_set: np.uint64,
    mask_clr: np.uint64,
    force_split: bool,
) -> tuple[int, np.uint64]:
    """What becomes of a large leaf, and its new attributes (sm: should_split_large_page, __should_split_large_page).

    The order is the kernel's: forced; a leaf that breaks the static protections already (4.20); nothing to
    change, whatever the range; not covered; and no attempt to find out whether a conflict could be avoided (585948f4f695).
    """
    if force_split:
        return _SPLIT_FORCED, old
    rodata = _in_rodata(m, first, size)
    if rodata and old & _P != _ZERO and old & _RW != _ZERO:
        return _SPLIT_STATIC, old
    wanted = _changed_large(old, mask_set, mask_clr)
    if wanted == old:
        return _KEEP, old
    if page != first or rest < size:
        return _SPLIT, old
    if rodata and wanted & _P != _ZERO and wanted & _RW != _ZERO:
        return _SPLIT_RODATA, old
    return _REWRITE, wanted


@kernel
def _met_large(m: Entries, what: int, level: int, old: np.uint64, new: np.uint64, row: int) -> None:
    """Count the rules that a large leaf has met."""
    met(m, 2 * what + (1 if level == G1 else 0), row)
    if what >= _SPLIT and old & _P == _ZERO:
        met(m, _ABSENT_SPLIT, row)
    if what != _KEEP and (old | new) & _PAT != _ZERO:
        met(m, _PAT_LARGE, row)
    if what == _REWRITE and old & _P != _ZERO and new & _P == _ZERO:
        met(m, _LARGE_ABSENT, row)
        if old & _G != _ZERO:
            met(m, _GLOBAL_LOST, row)


@kernel
def _log_split(log: SplitLog, row: int, ts_ns: int, pfn: int, page: int, level: int, attrs: np.uint64) -> bool:
    at = log.n[0]
    if at >= len(log.row):
        return False
    log.row[at] = row
    log.ts_ns[at] = ts_ns
    log.pfn[at] = pfn
    log.page[at] = page
    log.level[at] = level
    log.attrs[at] = attrs
    log.n[0] = at + 1
    return True


@kernel
def _change_pages(m: Entries, row: int, page: int, n: int, mask_set: np.uint64, mask_clr: np.uint64) -> int:
    """Change `n` 4K entries of one split frame (sm: __change_page_attr); how many got another value, or ATTRS_OVERFLOW."""
    slab = m.frame_slab[page >> FRAME_SHIFT]
    start = page & (FRAME - 1)
    n_changed = 0
    known_old, known_new = -1, -1  # neighbours mostly hold the same attributes
    for i in range(start, start + n):
        code = signed(m.slabs[slab, i])
        if code == 0:
            met(m, _HOLE_PASSED, row)
            continue
        rodata = _in_rodata(m, page - start + i, 1)
        if code == known_old and not rodata:
            new = known_new
        else:
            value = _changed(m.attrs[code], mask_set, mask_clr)
            if rodata and value & _P != _ZERO:
                if value & _RW != _ZERO:
                    met(m, _RODATA_4K, row)
                value &= ~_RW
            if m.attrs[code] & ~value & _G & ~mask_clr != _ZERO:
                met(m, _GLOBAL_LOST, row)
            new = attr_code(m, value)
            if new < 0:
                return ATTRS_OVERFLOW
            met(m, _SAME_4K if new == code else _WRITTEN_4K, row)
            if not rodata:
                known_old, known_new = code, new
        if new != code:
            m.slabs[slab, i] = new
            n_changed += 1
    return n_changed


@kernel
def split_leaf(m: Entries, log: SplitLog, row: int, ts_ns: int, page: int, level: int) -> int:
    """Split the leaf of `level` above a page, if it is one still. 0, or ATTRS_OVERFLOW or LOG_FULL."""
    giga, frame = page >> GIGA_SHIFT, page >> FRAME_SHIFT
    if level == G1 and m.giga_level[giga] == G1:
        first, size, code = giga << GIGA_SHIFT, GIGA, signed(m.giga_code[giga])
    elif level == M2 and m.giga_level[giga] == M2 and m.frame_level[frame] == M2:
        first, size, code = frame << FRAME_SHIFT, FRAME, signed(m.frame_code[frame])
    else:
        return 0
    old = m.attrs[code]
    static = _in_rodata(m, first, size) and old & _P != _ZERO and old & _RW != _ZERO
    done = split_giga(m, giga) if level == G1 else split_frame(m, frame, static)
    if not done:
        return ATTRS_OVERFLOW
    met(m, _LEFT_SPLIT, row)
    return 0 if _log_split(log, row, ts_ns, first, page, level, old) else LOG_FULL


@kernel
def change_range(
    m: Entries,
    log: SplitLog,
    window: Window,
    row: int,
    entry_ns: int,
    exit_ns: int,
    pfn: int,
    n_pages: int,
    n_done: int,
    mask_set: np.uint64,
    mask_clr: np.uint64,
    force_split: bool,
    has_pgd: bool | None,
) -> tuple[int, int, int]:
    """Apply one call on `n_pages` pages from `pfn`, of which the first `n_done` were completed.

    Whether a large leaf is covered is decided by what was asked for, not by what was completed (sm:
    __change_page_attr_set_clr stores the pages remaining for "the large page preservation check"). A page of a pages
    array is a call of one page. Frames outside `window` are passed over. The caller keeps pfn + n_pages inside the map.
    `has_pgd` is None where no call of the trace has one: what fills holes takes a second to compile, and is left out then.

    Returns (1G leaves split, 2M leaves split, entries changed); the first is ATTRS_OVERFLOW or LOG_FULL on failure.
    """
    n_giga, n_frame, n_changed = 0, 0, 0
    if mask_set | mask_clr == _ZERO and not force_split:
        met(m, _NO_MASKS, row)
        return 0, 0, 0
    windowed = len(window.lo) > 0
    static = False  # cpa->force_static_prot: once set it stays for the rest of the call
    i = 0
    while i < n_done:
        page = pfn + i
        frame = page >> FRAME_SHIFT
        giga = page >> GIGA_SHIFT
        to_frame_end = FRAME - (page & (FRAME - 1))
        if windowed and (exit_ns <= window.lo[frame] or entry_ns >= window.hi[frame]):
            i += to_frame_end
            continue
        rest = n_pages - i
        level = m.giga_level[giga]
        if level == G1:
            first = giga << GIGA_SHIFT
            old = m.attrs[m.giga_code[giga]]
            what, new = _decide(m, old, first, GIGA, page, rest, mask_set, mask_clr, force_split)
            _met_large(m, what, level, old, new, row)
            if what >= _SPLIT:
                static = static or what == _SPLIT_STATIC
                if not split_giga(m, giga):
                    return ATTRS_OVERFLOW, 0, 0
                n_giga += 1
                if not _log_split(log, row, exit_ns, first, page, G1, old):
                    return LOG_FULL, 0, 0
                continue
            if what == _REWRITE:
                code = attr_code(m, new)
                if code < 0:
                    return ATTRS_OVERFLOW, 0, 0
                m.giga_code[giga] = code
                n_changed += 1
            i += min(rest, first + GIGA - page)
            continue
        if level == M2:
            level = m.frame_level[frame]
            if level == K4:
                n = min(to_frame_end, n_done - i)
                if has_pgd is not None:  # numba leaves the branch out where it is None
                    n = pages_to_hole(m, page, n) if has_pgd else n
                if n > 0:
                    got = _change_pages(m, row, page, n, mask_set, mask_clr)
                    if got < 0:
                        return ATTRS_OVERFLOW, 0, 0
                    n_changed += got
                    i += n
                    continue
            if level == M2:
                first = frame << FRAME_SHIFT
                old = m.attrs[m.frame_code[frame]]
                what, new = _decide(m, old, first, FRAME, page, rest, mask_set, mask_clr, force_split)
                _met_large(m, what, level, old, new, row)
                if what >= _SPLIT:
                    static = static or what == _SPLIT_STATIC
                    if not split_frame(m, frame, static):
                        return ATTRS_OVERFLOW, 0, 0
                    n_frame += 1
                    if not _log_split(log, row, exit_ns, first, page, M2, old):
                        return LOG_FULL, 0, 0
                    continue
                if what == _REWRITE:
                    code = attr_code(m, new)
                    if code < 0:
                        return ATTRS_OVERFLOW, 0, 0
                    m.frame_code[frame] = code
                    n_changed += 1
                i += min(rest, to_frame_end)
                continue
        # A hole: passed over page by page, or filled where the call brings its page directory (sm: __cpa_process_fault).
        if has_pgd is not None:  # noqa: SIM102 (only a branch of just this form is left out)
            if has_pgd:
                code = attr_code(m, _changed(_KERNPG_TABLE, mask_set, mask_clr))
                if code < 0:
                    return ATTRS_OVERFLOW, 0, 0
                met(m, _HOLE_FILLED, row)
                n_changed += fill(m, window, entry_ns, exit_ns, page, pfn + n_pages, code)
                break
        met(m, _HOLE_PASSED, row)
        i += min(rest, GIGA - (page & (GIGA - 1)) if m.giga_level[giga] == 0 else to_frame_end)
    return n_giga, n_frame, n_changed
