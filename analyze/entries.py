"""The direct map's leaf entries as flat arrays: what compiled code reads and changes.

Three tables as in the kernel: one cell per 1G range, one per 2M frame, and a slab of 512 cells for each 2M frame that
4K entries map. Attributes are interned: a cell is a 16-bit code into `attrs`. Slabs are reserved for every frame but
take memory only where they are used, so a 4 TB host with a tenth of its frames split takes about 300 MB.
"""

from __future__ import annotations

import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel, signed
from analyze.rule_names import N_COUNTED
from collect.schema import ATTRS_HARDWARE, Level, Pte

__all__ = [
    "ATTRS_FULL",
    "FRAME_SHIFT",
    "GIGA_SHIFT",
    "MAX_ATTRS",
    "MAX_SLABS",
    "SLABS_FULL",
    "Entries",
    "attr_code",
    "clear_frame",
    "collapse_frame",
    "collapse_giga",
    "entry_at",
    "met",
    "new_entries",
    "open_slab",
    "split_frame",
    "split_giga",
]

FRAME_SHIFT = 9
"""Page frame number >> FRAME_SHIFT = number of the 2M frame."""
GIGA_SHIFT = 18
"""Page frame number >> GIGA_SHIFT = number of the 1G range."""
FRAME = 1 << FRAME_SHIFT
GIGA = 1 << GIGA_SHIFT

MAX_ATTRS = (1 << 16) - 1
"""Different attribute words that one map can hold; real maps hold a few dozen."""
MAX_SLABS = 1 << 18
"""2M frames in 4K entries that one map can hold, 512 GB: 256 MiB of memory, whatever a trace claims to have split."""
ATTRS_FULL = -1
"""Returned instead of a code when `MAX_ATTRS` is reached."""

_HASH_BITS = 17
_HASH_SIZE = 1 << _HASH_BITS
_HASH_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)  # Fibonacci hashing (Knuth, TAOCP 3, 6.4)
_HASH_SHIFT = np.uint64(64 - _HASH_BITS)

_RW = np.uint64(int(Pte.RW))
_P = np.uint64(int(Pte.P))
_G = np.uint64(int(Pte.G))
_HARDWARE = np.uint64(ATTRS_HARDWARE)
_KERNEL_4K = np.uint64(1 << 11)  # asm/pgtable_types.h: _PAGE_KERNEL_4K, an entry that is 4K on purpose (6.15)

K4, M2, G1 = int(Level.K4), int(Level.M2), int(Level.G1)

# Cells of Entries.meta
N_SLABS, N_ATTRS, SYMBOLIC, RODATA_FIRST, RODATA_END, N_FREE_SLABS, SLABS_FULL, RULES = range(8)
META_CELLS = (
    RULES + 2 * N_COUNTED
)  # from RULES on two for each Rule: changes that exercised it, row of the last one + 1


class Entries(NamedTuple):
    """State of one direct map. `meta` and `counts` are arrays so that compiled code can change them.

    Level cells: of a 1G range 0 (hole), 2 (a table of 2M frames) or 3 (leaf); of a 2M frame, where its 1G range is a
    table, 0 (hole), 1 (a table of 4K pages: split) or 2 (leaf). Code 0 of a page is a hole.
    """

    giga_level: npt.NDArray[np.uint8]
    giga_code: npt.NDArray[np.uint16]
    frame_level: npt.NDArray[np.uint8]
    frame_code: npt.NDArray[np.uint16]
    frame_slab: npt.NDArray[np.int32]  # says something only where the frame is split
    slabs: npt.NDArray[np.uint16]  # [slab, page within the frame]
    free_slabs: npt.NDArray[np.int32]
    attrs: npt.NDArray[np.uint64]  # code -> Pte bits
    codes: npt.NDArray[np.int32]  # hash table over attrs, 0 = empty
    meta: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]  # [0 real | 1 symbolic, Level] leaf entries


def new_entries(n_pages: int, n_symbolic: int, rodata: tuple[int, int]) -> Entries:
    """An empty map for `n_pages` pages, with room for `n_symbolic` 2M frames behind it."""
    n_real_gigas = -(-n_pages // GIGA)
    n_gigas = n_real_gigas + -(-n_symbolic * FRAME // GIGA)
    n_frames = n_gigas << (GIGA_SHIFT - FRAME_SHIFT)
    entries = Entries(
        giga_level=np.zeros(n_gigas, np.uint8),
        giga_code=np.zeros(n_gigas, np.uint16),
        frame_level=np.zeros(n_frames, np.uint8),
        frame_code=np.zeros(n_frames, np.uint16),
        frame_slab=np.zeros(n_frames, np.int32),  # zeros take no memory until they are written
        slabs=_reserve(min(n_frames, MAX_SLABS) * FRAME, np.uint16).reshape(-1, FRAME),
        free_slabs=_reserve(n_frames, np.int32),
        attrs=np.zeros(MAX_ATTRS + 1, np.uint64),
        codes=np.zeros(_HASH_SIZE, np.int32),
        meta=np.zeros(META_CELLS, np.int64),
        counts=np.zeros((2, 4), np.int64),
    )
    entries.meta[N_ATTRS] = 1  # code 0 is a hole
    entries.meta[SYMBOLIC] = n_real_gigas << GIGA_SHIFT
    entries.meta[RODATA_FIRST : RODATA_END + 1] = rodata
    return entries


def _reserve(n: int, dtype: Any) -> npt.NDArray[Any]:
    """Zeros that take memory only once written, however many (the kernel does not account MAP_NORESERVE)."""
    n_bytes = max(1, n * np.dtype(dtype).itemsize)
    no_reserve = 0x4000  # MAP_NORESERVE, asm-generic/mman.h; Python names it from 3.13 on
    return np.frombuffer(mmap.mmap(-1, n_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve), dtype, n)


@kernel
def attr_code(m: Entries, value: np.uint64) -> int:
    """Code of an attribute word, given out on first use; ATTRS_FULL if there is none left."""
    at = signed((value * _HASH_FACTOR) >> _HASH_SHIFT)
    while m.codes[at] != 0:
        if m.attrs[m.codes[at]] == value:
            return signed(m.codes[at])
        at = (at + 1) & (_HASH_SIZE - 1)
    code = m.meta[N_ATTRS]
    if code > MAX_ATTRS:
        return ATTRS_FULL
    m.attrs[code] = value
    m.codes[at] = code
    m.meta[N_ATTRS] = code + 1
    return code  # type: ignore[no-any-return]


@kernel
def entry_at(m: Entries, pfn: int) -> tuple[int, int]:
    """(level, attribute code) of the leaf that maps a page; (0, 0) for a hole."""
    giga = pfn >> GIGA_SHIFT
    if m.giga_level[giga] != M2:
        return signed(m.giga_level[giga]), signed(m.giga_code[giga])
    frame = pfn >> FRAME_SHIFT
    if m.frame_level[frame] != K4:
        return signed(m.frame_level[frame]), signed(m.frame_code[frame])
    code = signed(m.slabs[m.frame_slab[frame], pfn & (FRAME - 1)])
    return (K4 if code != 0 else 0), code


@kernel
def met(m: Entries, rule: int, row: int) -> None:
    """Count a rule, once for a change however often it meets it."""
    at = RULES + 2 * rule
    if m.meta[at + 1] != row + 1:
        m.meta[at] += 1
        m.meta[at + 1] = row + 1


@kernel
def _strips_rw(m: Entries, value: np.uint64, first: int, n_pages: int) -> bool:
    """static_protections() on the direct map: rodata may not be writable (sm: protect_rodata)."""
    return bool(
        (value & _P) != 0
        and (value & _RW) != 0
        and first < m.meta[RODATA_END]
        and first + n_pages > m.meta[RODATA_FIRST]
    )


@kernel
def open_slab(m: Entries, frame: int, code: int) -> None:
    """Give a frame a table of 4K entries, all of `code`. Does not count. Sets `SLABS_FULL` where there are too many."""
    if m.meta[N_FREE_SLABS] > 0:
        m.meta[N_FREE_SLABS] -= 1
        slab = signed(m.free_slabs[m.meta[N_FREE_SLABS]])
    elif m.meta[N_SLABS] < m.slabs.shape[0]:
        slab = m.meta[N_SLABS]
        m.meta[N_SLABS] += 1
    else:  # nothing is right from here on: whoever looks after the loop refuses the trace
        m.meta[SLABS_FULL] = 1
        slab = 0
    m.frame_slab[frame] = slab
    for i in range(FRAME):
        m.slabs[slab, i] = code
    m.frame_level[frame] = K4
    m.frame_code[frame] = 0


@kernel
def _for_smaller(m: Entries, code: int) -> int:
    """The code that the parts of a split leaf get: a leaf that is not present has no G to pass on
    (sm: __split_large_page, pgprot_clear_protnone_bits).
    """
    value = m.attrs[code]
    return attr_code(m, value & ~_G) if value & _P == 0 and value & _G != 0 else code


@kernel
def split_frame(m: Entries, frame: int, static: bool) -> bool:
    """2M leaf -> 512 4K entries with its flags (sm: __split_large_page). False: no attribute code left.

    `static`: the leaf broke the static protections; each new entry is made to keep them (sm: split_set_pte).
    """
    code = _for_smaller(m, signed(m.frame_code[frame]))
    if code < 0:
        return False
    open_slab(m, frame, code)
    first = frame << FRAME_SHIFT
    side = 1 if first >= m.meta[SYMBOLIC] else 0
    m.counts[side, M2] -= 1
    m.counts[side, K4] += FRAME
    if static:
        value = m.attrs[code]
        slab = m.frame_slab[frame]
        for i in range(FRAME):
            if _strips_rw(m, value, first + i, 1):
                stripped = attr_code(m, value & ~_RW)
                if stripped < 0:
                    return False
                m.slabs[slab, i] = stripped
    return True


@kernel
def split_giga(m: Entries, giga: int) -> bool:
    """1G leaf -> 512 2M leaves with its flags (sm: __split_large_page). False: no attribute code left.

    A leaf that broke the static protections hands that on: only new 4K entries are made to keep them (sm:
    split_set_pte, "Cannot fixup static protections for PUD split"), when the 2M leaf is split in its turn.
    """
    code = _for_smaller(m, signed(m.giga_code[giga]))
    if code < 0:
        return False
    first = giga << (GIGA_SHIFT - FRAME_SHIFT)
    m.giga_level[giga] = M2
    m.giga_code[giga] = 0
    side = 1 if giga << GIGA_SHIFT >= m.meta[SYMBOLIC] else 0
    m.counts[side, G1] -= 1
    m.counts[side, M2] += GIGA >> FRAME_SHIFT
    for frame in range(first, first + (GIGA >> FRAME_SHIFT)):
        m.frame_level[frame] = M2
        m.frame_code[frame] = code
        m.frame_slab[frame] = -1
    return True


@kernel
def clear_frame(m: Entries, frame: int) -> None:
    """Make a hole of a 2M frame whose 1G range is a table, whatever maps it."""
    side = 1 if frame << FRAME_SHIFT >= m.meta[SYMBOLIC] else 0
    if m.frame_level[frame] == M2:
        m.counts[side, M2] -= 1
    elif m.frame_level[frame] == K4:
        slab = m.frame_slab[frame]
        for i in range(FRAME):
            if m.slabs[slab, i] != 0:
                m.counts[side, K4] -= 1
        m.frame_slab[frame] = -1
        m.free_slabs[m.meta[N_FREE_SLABS]] = slab
        m.meta[N_FREE_SLABS] += 1
    m.frame_level[frame] = 0
    m.frame_code[frame] = 0


@kernel
def _alike(m: Entries, code: int, first: int) -> bool:
    """Present, and of the same flags as the first of its table, but for what the CPU sets (which a trace cannot know)."""
    return bool((m.attrs[code] & _P) != 0 and (m.attrs[code] ^ m.attrs[first]) & ~_HARDWARE == 0)


@kernel
def collapse_frame(m: Entries, frame: int) -> bool:
    """512 4K entries -> the 2M leaf of the first one's flags (sm: collapse_pmd_page, 6.15 and later).

    False, and nothing done, where the frame is not split, or not all entries are present and alike, or 4K on purpose.
    """
    if m.giga_level[frame >> (GIGA_SHIFT - FRAME_SHIFT)] != M2 or m.frame_level[frame] != K4:
        return False
    slab = m.frame_slab[frame]
    first = signed(m.slabs[slab, 0])
    if m.attrs[first] & _KERNEL_4K != 0:
        return False
    for i in range(FRAME):
        if not _alike(m, signed(m.slabs[slab, i]), first):
            return False
    side = 1 if frame << FRAME_SHIFT >= m.meta[SYMBOLIC] else 0
    m.counts[side, K4] -= FRAME
    m.counts[side, M2] += 1
    m.frame_level[frame] = M2
    m.frame_code[frame] = m.slabs[slab, 0]
    m.frame_slab[frame] = -1
    m.free_slabs[m.meta[N_FREE_SLABS]] = slab
    m.meta[N_FREE_SLABS] += 1
    return True


@kernel
def collapse_giga(m: Entries, giga: int) -> bool:
    """512 2M leaves -> the 1G leaf of the first one's flags (sm: collapse_pud_page, 6.15 and later).

    False, and nothing done, where not all are leaves, present and alike.
    """
    first = giga << (GIGA_SHIFT - FRAME_SHIFT)
    if m.giga_level[giga] != M2:
        return False
    for frame in range(first, first + (GIGA >> FRAME_SHIFT)):
        if m.frame_level[frame] != M2 or not _alike(m, signed(m.frame_code[frame]), signed(m.frame_code[first])):
            return False
    side = 1 if giga << GIGA_SHIFT >= m.meta[SYMBOLIC] else 0
    m.counts[side, M2] -= GIGA >> FRAME_SHIFT
    m.counts[side, G1] += 1
    m.giga_level[giga] = G1
    m.giga_code[giga] = m.frame_code[first]
    for frame in range(first, first + (GIGA >> FRAME_SHIFT)):
        m.frame_level[frame] = 0
    return True
