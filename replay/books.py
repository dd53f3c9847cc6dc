"""What the walk keeps beside the map, and how a change of the map changes it: compiled, for `replay.walk`.

Per 2M frame: how many of its pages are special (not present, or not writable), whether 4K entries map it now, whether
it was split in this run. The tally follows from them. `hostable` says of a real frame that a whole block may have lain
there once it is split (it is RAM), and of a symbolic one that it stands for memory in pieces, which may have lain among
others' pages.

**Merging.** Where `tally[MERGING]` is set, a frame goes back to one 2M entry as soon as none of its pages is special, all
are there, and all have the same attributes but for `ignored_bits`; then its 1G range, if 512 such entries fill it. That is
Aaron Lu's RFC of August 2022 (20220808145649.2261258-1), which keeps a count of equal entries a page table and merges when it
reaches 512, recursively. Frames that the kernel maps by 4K entries on purpose (set_memory_4k, KFENCE) are let alone,
which that RFC was criticised for not doing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from analyze.directmap import Entries, SplitLog
from analyze.entries import FRAME, FRAME_SHIFT, collapse_frame, collapse_giga
from analyze.jit import kernel
from collect.schema import Level, Pte
from replay.placement import NOBODY

__all__ = [
    "CANDIDATES",
    "GIGA_REAL",
    "HOSTED",
    "LIVE_REAL",
    "LIVE_SYM",
    "MERGED_1G",
    "MERGED_REAL",
    "MERGED_SYM",
    "MERGING",
    "N_TALLY",
    "PEAK_HI",
    "PEAK_LO",
    "SPLITS_1G",
    "SPLITS_REAL",
    "SPLITS_SYM",
    "SPLIT_REAL",
    "SPLIT_SYM",
    "STEPS",
    "Books",
    "after_split",
    "count_splits",
    "is_split",
    "keep_peak",
    "n_special",
    "new_books",
    "recount",
    "resync",
    "settle",
]

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ORDINARY = np.uint64(int(Pte.P | Pte.RW))
_ZERO = np.uint64(0)
_KERNEL_4K = np.uint64(1 << 11)  # asm/pgtable_types.h: _PAGE_KERNEL_4K, an entry that is 4K on purpose (6.15)
_K4, _M2, _G1 = int(Level.K4), int(Level.M2), int(Level.G1)
_FRAME, _FRAME_SHIFT = FRAME, FRAME_SHIFT

(
    SPLIT_REAL, SPLIT_SYM, HOSTED, HOSTED_WHOLE, LIVE_REAL, LIVE_SYM, CANDIDATES, GIGA_REAL, STEPS, PEAK_LO, PEAK_HI,
    SPLITS_REAL, SPLITS_SYM, SPLITS_1G, MERGED_REAL, MERGED_SYM, MERGED_1G, MERGING,
) = range(18)  # fmt: skip
N_TALLY = 18


class Books(NamedTuple):
    """Per 2M frame, real ones first, unless said otherwise; arrays, so that compiled code can change them."""

    special: npt.NDArray[np.int32]
    hostable: Bools
    split_now: Bools
    split_in_run: Bools
    keep_small: Bools  # never merged
    giga_in_run: Bools  # per 1G range: its entry was split in this run
    tally: Int64
    by_user: Int64  # [real 0 | symbolic 1, user]: distinct 2M frames, by whose change split them first
    ignored_bits: npt.NDArray[np.uint64]  # one cell


def new_books(n_frames: int, n_gigas: int, special: npt.NDArray[np.int32], *, ignored_bits: int | None) -> Books:
    """Books on a map of which nothing is split; `ignored_bits` None: nothing is ever merged."""
    books = Books(
        special=special,
        hostable=np.zeros(n_frames, np.bool_),
        split_now=np.zeros(n_frames, np.bool_),
        split_in_run=np.zeros(n_frames, np.bool_),
        keep_small=np.zeros(n_frames, np.bool_),
        giga_in_run=np.zeros(n_gigas, np.bool_),
        tally=np.zeros(N_TALLY, np.int64),
        by_user=np.zeros((2, NOBODY + 1), np.int64),
        ignored_bits=np.array([ignored_bits or 0], np.uint64),
    )
    books.tally[MERGING] = ignored_bits is not None
    return books


@kernel
def n_special(m: Entries, first: int, n: int) -> int:
    """Special pages among `n` pages of one split frame."""
    slab = m.frame_slab[first >> _FRAME_SHIFT]
    count = 0
    start = first & (_FRAME - 1)
    for i in range(start, start + n):
        code = m.slabs[slab, i]
        if code != 0 and m.attrs[code] & _ORDINARY != _ORDINARY:
            count += 1
    return count


@kernel
def is_split(m: Entries, frame: int) -> bool:
    """Whether 4K entries map a frame."""
    return m.giga_level[frame >> 9] == _M2 and m.frame_level[frame] == _K4  # type: ignore[no-any-return]


@kernel
def recount(books: Books, frame: int, delta: int, symbolic: int) -> None:
    """A split frame has `delta` more special pages: keep the number of live frames and of possible hosts."""
    before = books.special[frame]
    after = before + delta
    books.special[frame] = after
    if (before == 0) == (after == 0):
        return
    step = 1 if after > 0 else -1
    if books.split_in_run[frame]:
        books.tally[LIVE_SYM if frame >= symbolic else LIVE_REAL] += step
    if frame < symbolic and books.hostable[frame] and books.split_now[frame]:
        books.tally[CANDIDATES] -= step


@kernel
def after_split(books: Books, frame: int, n: int, counts: bool, who: int, symbolic: int) -> None:
    """4K entries map a frame from now on, `n` of its pages special; a distinct one is counted once however often."""
    tally = books.tally
    books.split_now[frame] = True
    books.special[frame] = n
    if counts and not books.split_in_run[frame]:
        books.split_in_run[frame] = True
        books.by_user[1 if frame >= symbolic else 0, who] += 1
        if frame >= symbolic:
            tally[SPLIT_SYM] += 1
            if books.hostable[frame]:  # in pieces: may lie in split frames among pages of others
                tally[HOSTED] += 1
            elif tally[CANDIDATES] > tally[HOSTED_WHOLE]:
                tally[HOSTED_WHOLE] += 1
                tally[HOSTED] += 1
        else:
            tally[SPLIT_REAL] += 1
    if n > 0:
        if books.split_in_run[frame]:
            tally[LIVE_SYM if frame >= symbolic else LIVE_REAL] += 1
    elif frame < symbolic and books.hostable[frame]:
        tally[CANDIDATES] += 1


@kernel
def resync(
    m: Entries, log: SplitLog, n_logged: int, first: int, last: int, who: int, symbolic: int, books: Books
) -> None:
    """Bring the books on frames `first` to `last` in line with the map, whatever happened to them."""
    for frame in range(first, last + 1):
        if is_split(m, frame):
            total = n_special(m, frame << _FRAME_SHIFT, _FRAME)
            if books.split_now[frame]:
                recount(books, frame, total - books.special[frame], symbolic)
            else:
                counts = False  # a hole that was filled by 4K entries is no split
                for i in range(n_logged, log.n[0]):
                    counts = counts or (log.level[i] == _M2 and log.pfn[i] >> _FRAME_SHIFT == frame)
                after_split(books, frame, total, counts, who, symbolic)
        elif books.split_now[frame]:  # put back, or memory removed
            _unsplit(books, frame, symbolic)


@kernel
def _unsplit(books: Books, frame: int, symbolic: int) -> None:
    recount(books, frame, -books.special[frame], symbolic)
    if frame < symbolic and books.hostable[frame]:
        books.tally[CANDIDATES] -= 1
    books.split_now[frame] = False


@kernel
def count_splits(log: SplitLog, n_logged: int, symbolic: int, books: Books) -> None:
    """Every split since `n_logged`, again or not; the log begins anew where merging makes their number unbounded."""
    for i in range(n_logged, log.n[0]):
        frame = log.pfn[i] >> _FRAME_SHIFT
        if log.level[i] == _G1:
            books.tally[SPLITS_1G] += 1
            if not books.giga_in_run[frame >> 9]:
                books.giga_in_run[frame >> 9] = True
                books.tally[GIGA_REAL] += 1
        else:
            books.tally[SPLITS_SYM if frame >= symbolic else SPLITS_REAL] += 1
    if books.tally[MERGING] != 0:
        log.n[0] = 0


@kernel
def keep_peak(tally: Int64) -> None:
    """Keep the most frames that were live at once."""
    tally[PEAK_LO] = max(tally[PEAK_LO], tally[LIVE_REAL] + max(0, tally[LIVE_SYM] - tally[HOSTED]))
    tally[PEAK_HI] = max(tally[PEAK_HI], tally[LIVE_REAL] + tally[LIVE_SYM])


@kernel
def settle(m: Entries, books: Books, frame: int, symbolic: int) -> None:
    """Merge a frame that is split and has no special page, and its 1G range, where all entries are alike."""
    if not books.split_now[frame] or books.special[frame] != 0 or books.keep_small[frame]:
        return
    cared = ~books.ignored_bits[0]
    slab = m.frame_slab[frame]
    first = m.slabs[slab, 0]
    if first == 0 or m.attrs[first] & _KERNEL_4K != _ZERO:
        return
    for i in range(1, _FRAME):
        code = m.slabs[slab, i]
        if code != first and (code == 0 or (m.attrs[code] ^ m.attrs[first]) & cared != _ZERO):
            return
    for i in range(1, _FRAME):
        m.slabs[slab, i] = first  # what is ignored must not differ for the kernel's own rule either
    if not collapse_frame(m, frame):
        return
    _unsplit(books, frame, symbolic)
    books.tally[MERGED_SYM if frame >= symbolic else MERGED_REAL] += 1
    if frame < symbolic:  # of a block nobody knows the neighbours
        _settle_giga(m, books, frame >> 9, m.attrs[m.frame_code[frame]])


@kernel
def _settle_giga(m: Entries, books: Books, giga: int, attrs: np.uint64) -> None:
    """Merge a 1G range whose 512 frames are mapped by 2M entries like `attrs`."""
    cared = ~books.ignored_bits[0]
    for frame in range(giga << 9, (giga + 1) << 9):
        if m.frame_level[frame] != _M2 or (m.attrs[m.frame_code[frame]] ^ attrs) & cared != _ZERO:
            return
    for frame in range((giga << 9) + 1, (giga + 1) << 9):
        m.frame_code[frame] = m.frame_code[giga << 9]
    if collapse_giga(m, giga):
        books.tally[MERGED_1G] += 1
