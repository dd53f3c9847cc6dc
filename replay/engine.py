"""The counterfactual direct map: recorded changes, carried over to where a policy put the pages, and its own acts.

One placement after another runs over the same decoded stream. Rules of the map are `analyze.rules`; nothing here knows
what a policy is.

**Carrying over.** The pages of a recorded step are looked up one by one: a page that no request owned stays where it
is, a page of a request goes where the placement says. What is consecutive there is one step again. So the placement
that gives each request its recorded frames makes exactly the recorded steps.

**Bounds.** A symbolic block whose entry is split counts as one more 2M frame split at most. At least, it may have lain
in a frame that was split already: a frame of RAM, mapped by 4K entries, none of which is special at that moment. Each
such frame can host one block; blocks beyond their number must have split a frame of their own. A block that stands for
memory in pieces (single pages, or a refill below 2 MiB) may have lain among others' pages in any split frame. A 1G entry may have
been split by a block or not, but never more of them than there were.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from analyze.directmap import DirectMap, SplitLog, Window, new_log, raise_failure
from analyze.entries import FRAME, GIGA
from collect.errors import TraceError
from collect.schema import Level, Pte
from replay.books import (
    CANDIDATES,
    GIGA_REAL,
    HOSTED,
    LIVE_REAL,
    LIVE_SYM,
    MERGED_1G,
    MERGED_REAL,
    MERGED_SYM,
    PEAK_HI,
    PEAK_LO,
    SPLIT_REAL,
    SPLIT_SYM,
    SPLITS_1G,
    SPLITS_REAL,
    SPLITS_SYM,
    STEPS,
    Books,
    new_books,
    settle,
)
from replay.placement import GONE, MAX_BLOCKS, NOBODY, SYMBOLIC, Acts, Placement, too_many_blocks
from replay.steps import MAX_MASKS
from replay.stream import Stream
from replay.walk import ActColumns, StepColumns, walk_steps

__all__ = ["CURVES", "Walk", "special_pages", "walk"]

Int64 = npt.NDArray[np.int64]

_ORDINARY = np.uint64(int(Pte.P | Pte.RW))
_MERGED_ANYWAY = int(Pte.A | Pte.D | Pte.G)
_OPEN = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)

KNOWN_CODES = 1024
"""Attribute codes for which the walk remembers what a change makes of them; real maps hold a few dozen."""


MAX_ACT_MASKS = 16
"""Pairs of masks of acts that are numbered, behind those of steps; policies use a handful."""

CURVES = ("split_lo", "split_hi", "live_lo", "live_hi")


@dataclass(frozen=True)
class Walk:
    """What the map went through under one placement.

    Attributes:
        map: the map at the end.
        log: splits in order of effect; its rows of `ts_ns` are times, `pfn` may be symbolic. Empty where entries merge.
        split_2m, split_1g: distinct frames and 1G entries split. With live_end, live_peak and what follows:
            (lower, upper) bounds.
        splits: splits of any entry, again or not: each flushes every TLB.
        merges: large entries put back by merging.
        split_end: how many more frames 4K entries map at the end than the real part of `map` says, for blocks.
        n_steps: steps that reached the page tables, the policy's own included.
        by_user: [2, users and nobody] distinct 2M frames split, by whose change did it first: those that surely were, and blocks
            that may have lain where all was split already (none where a placement's blocks lie apart).
        curves: [4, moments] as `CURVES` names them, at `Stream.grid_ns`.
        by_user_curves: [2, users and nobody, moments] what `by_user` was then.
    """

    map: DirectMap
    log: SplitLog
    split_2m: tuple[int, int]
    split_1g: tuple[int, int]
    live_end: tuple[int, int]
    live_peak: tuple[int, int]
    splits: tuple[int, int]
    merges: tuple[int, int]
    split_end: tuple[int, int]
    n_steps: int
    by_user: Int64
    curves: Int64
    by_user_curves: Int64 = field(default_factory=lambda: np.zeros((2, NOBODY + 1, 0), np.int64))


def special_pages(m: DirectMap, n_frames: int) -> npt.NDArray[np.int32]:
    """Per 2M frame, how many of its pages are special (not present, or not writable); 0 where it is not split."""
    count = np.zeros(n_frames, np.int32)
    frames = m.split_frames()
    for at in range(0, len(frames), 4096):
        part = frames[at : at + 4096]
        attrs = m.pages_of(part)
        count[part] = np.count_nonzero((attrs != 0) & (attrs & _ORDINARY != _ORDINARY), axis=1)
    return count


def walk(stream: Stream, placement: Placement, *, merge_ignoring: int | None = None) -> Walk:
    """Replay the stream under a placement. Raises TraceError where the changes cannot be of one machine.

    `merge_ignoring`: frames merge again, see `replay.books`, whatever these `Pte` bits of their entries say; None: never.
    """
    if placement.n_blocks > MAX_BLOCKS:
        raise too_many_blocks(placement.n_blocks)
    m = stream.start_map(placement.n_blocks)
    entries = m.entries
    n_frames = len(entries.frame_level)
    books = _books(stream, m, placement, merge_ignoring)
    n_1g = m.counts()[Level.G1]
    most = m.counts()[Level.M2] + n_1g * (GIGA // FRAME)  # 2M frames that a large entry maps, and could be split
    if stream.n_put_back or stream.steps.has_pgd.any() or merge_ignoring is not None:  # or put back first, or new
        most = m.first_symbolic // FRAME

    requests, steps, acts = stream.requests, stream.steps, placement.acts
    owner = requests.owner
    dest = np.where(placement.swallowed[owner], GONE, placement.dest)
    log = new_log(n_frames + len(entries.giga_level) + stream.n_put_back * (1 + FRAME) + 1)
    n_curves = len(CURVES) + 2 * (NOBODY + 1)
    curves = np.zeros((n_curves, len(stream.grid_ns)), np.int64)
    window = Window(*(_padded(edge, n_frames, fill) for edge, fill in zip(stream.window, _OPEN, strict=True)))
    status = walk_steps(
        entries,
        log,
        window,
        StepColumns(**{name: getattr(steps, name) for name in StepColumns._fields}),
        _real(dest, m),
        requests.user[owner],
        ActColumns(
            at=np.searchsorted(steps.exit_ns, acts.ts_ns, side="left"),
            place=_real(acts.place, m),
            mask_id=_act_masks(acts),
            **{
                name: np.require(
                    getattr(acts, name), requirements=["C", "W"]
                )  # the one kind of array that is compiled for
                for name in ActColumns._fields
                if name not in ("at", "place", "mask_id")
            },
        ),
        books,
        stream.grid_ns,
        curves,
        np.full((MAX_MASKS + MAX_ACT_MASKS, KNOWN_CODES), -1, np.int32),
    )
    raise_failure(status, stream.trace.path)
    try:
        m.check_room()
    except TraceError as error:
        raise TraceError(f"{stream.trace.path}: {error}") from None
    if placement.merged_at_last:
        books.ignored_bits[0] = _MERGED_ANYWAY
        for frame in m.split_frames().tolist():
            settle(entries, books, frame, m.first_symbolic // FRAME)
    by_user_curves = curves[len(CURVES) :].reshape(2, NOBODY + 1, -1)
    if placement.apart:  # every block is a frame of its own, and surely split
        for surely, perhaps in (books.by_user, by_user_curves):
            surely += perhaps
            perhaps[:] = 0
    done = _summed_up(m, log, books, placement, curves[: len(CURVES)], most, n_1g)
    return replace(done, by_user_curves=by_user_curves)


def _books(stream: Stream, m: DirectMap, placement: Placement, merge_ignoring: int | None) -> Books:
    """The books at the start."""
    n_frames = len(m.entries.frame_level)
    books = new_books(n_frames, len(m.entries.giga_level), special_pages(m, n_frames), ignored_bits=merge_ignoring)
    if placement.n_blocks and not placement.apart:
        books.hostable[: len(stream.whole_ram)] = stream.may_host
    first_symbolic = m.first_symbolic // FRAME
    books.hostable[first_symbolic : first_symbolic + placement.n_blocks] = placement.in_pieces
    books.split_now[m.split_frames()] = True
    pool = stream.trace.manifest["memory"].get("kfence_pool")
    if pool:
        books.keep_small[pool[0] // FRAME : -(-pool[1] // FRAME)] = True
    books.tally[CANDIDATES] = np.count_nonzero(books.split_now & books.hostable & (books.special == 0))
    return books


def _summed_up(
    m: DirectMap, log: SplitLog, books: Books, placement: Placement, curves: Int64, most: int, n_1g: int
) -> Walk:
    tally = [int(cell) for cell in books.tally]
    hosted, sym, real = tally[HOSTED] if not placement.apart else 0, tally[SPLIT_SYM], tally[SPLIT_REAL]
    if placement.apart:
        tally[PEAK_LO] = tally[PEAK_HI]
        curves[0], curves[2] = curves[1], curves[3]
    live_real, live_sym, giga = tally[LIVE_REAL], tally[LIVE_SYM], tally[GIGA_REAL]
    sym_now = int(np.count_nonzero(books.split_now[m.first_symbolic // FRAME :]))
    split_1g = giga, max(giga, min(giga + placement.n_blocks, n_1g))
    surely = tally[SPLITS_REAL] + tally[SPLITS_1G]
    # a block that lay in a frame that was split already is neither split nor merged, however often
    sym_splits = tally[SPLITS_SYM] if not hosted else sym - hosted
    sym_merges = tally[MERGED_SYM] if not hosted else 0
    merged = tally[MERGED_REAL] + tally[MERGED_1G]
    splits_most = min(real + sym, most) + tally[SPLITS_REAL] - real + tally[SPLITS_SYM] - sym
    splits_most += tally[SPLITS_1G] + split_1g[1] - giga
    # there are no more frames than the machine has, however many blocks a forged trace asks for
    end_most = min(sym_now, max(0, most - real))
    return Walk(
        map=m,
        log=log,
        split_2m=(min(real + sym - hosted, most), min(real + sym, most)),
        split_1g=split_1g,
        live_end=(min(live_real + max(0, live_sym - hosted), most), min(live_real + live_sym, most)),
        live_peak=(min(tally[PEAK_LO], most), min(tally[PEAK_HI], most)),
        splits=(min(surely + sym_splits, splits_most), splits_most),
        merges=(merged + sym_merges, merged + tally[MERGED_SYM]),
        split_end=(min(max(0, sym_now - hosted), end_most), end_most),
        n_steps=tally[STEPS],
        by_user=books.by_user,
        curves=np.minimum(curves, most),
    )


def _act_masks(acts: Acts) -> npt.NDArray[np.int16]:
    """A number for each pair of masks, from `MAX_MASKS` on, -1 where there are too many."""
    ids = np.full(len(acts), -1, np.int16)
    for number in range(MAX_ACT_MASKS):
        left = ids < 0
        if not left.any():
            break
        one = int(left.argmax())
        ids[left & (acts.mask_set == acts.mask_set[one]) & (acts.mask_clr == acts.mask_clr[one])] = MAX_MASKS + number
    return ids


def _real(place: Int64, m: DirectMap) -> Int64:
    """Places as page frames of the map, whose symbolic frames lie behind its real ones."""
    return np.where(place >= SYMBOLIC, place - SYMBOLIC + m.first_symbolic, place)


def _padded(edge: Int64, n_frames: int, fill: int) -> Int64:
    """A window that covers the symbolic frames too: every change counts there."""
    return np.concatenate((edge[:n_frames], np.full(max(0, n_frames - len(edge)), fill, np.int64)))
