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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.directmap import DirectMap, SplitLog, Window, new_log, raise_failure
from analyze.entries import FRAME, GIGA
from collect.errors import TraceError
from collect.schema import Level, Pte
from replay.placement import GONE, SYMBOLIC, Placement
from replay.steps import MAX_MASKS
from replay.stream import Stream
from replay.walk import (
    CANDIDATES,
    GIGA_REAL,
    HOSTED,
    LIVE_REAL,
    LIVE_SYM,
    N_TALLY,
    PEAK_HI,
    PEAK_LO,
    SPLIT_REAL,
    SPLIT_SYM,
    STEPS,
    walk_steps,
)

__all__ = ["CURVES", "Walk", "special_pages", "walk"]

Int64 = npt.NDArray[np.int64]

_ORDINARY = np.uint64(int(Pte.P | Pte.RW))
_OPEN = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)

KNOWN_CODES = 1024
"""Attribute codes for which the walk remembers what a change makes of them; real maps hold a few dozen."""

CURVES = ("split_lo", "split_hi", "live_lo", "live_hi")


@dataclass(frozen=True)
class Walk:
    """What the map went through under one placement.

    Attributes:
        map: the map at the end.
        log: splits in order of effect; its rows of `ts_ns` are times, `pfn` may be symbolic.
        split_2m, split_1g, live_end, live_peak: (lower, upper) bounds.
        n_split_real: 2M frames split outside of symbolic blocks.
        n_split_again: splits of frames that had been split before and put back.
        n_steps: steps that reached the page tables, the policy's own included.
        curves: [4, moments] as `CURVES` names them, at `Stream.grid_ns`.
    """

    map: DirectMap
    log: SplitLog
    split_2m: tuple[int, int]
    split_1g: tuple[int, int]
    live_end: tuple[int, int]
    live_peak: tuple[int, int]
    n_split_real: int
    n_split_again: int
    n_steps: int
    curves: Int64


def special_pages(m: DirectMap, n_frames: int) -> npt.NDArray[np.int32]:
    """Per 2M frame, how many of its pages are special (not present, or not writable); 0 where it is not split."""
    count = np.zeros(n_frames, np.int32)
    frames = m.split_frames()
    for at in range(0, len(frames), 4096):
        part = frames[at : at + 4096]
        attrs = m.pages_of(part)
        count[part] = np.count_nonzero((attrs != 0) & (attrs & _ORDINARY != _ORDINARY), axis=1)
    return count


def walk(stream: Stream, placement: Placement) -> Walk:
    """Replay the stream under a placement. Raises TraceError where the changes cannot be of one machine."""
    m = stream.start_map(placement.n_blocks)
    entries = m.entries
    n_frames = len(entries.frame_level)
    special = special_pages(m, n_frames)
    hostable = np.zeros(n_frames, np.bool_)
    hostable[: len(stream.whole_ram)] = stream.whole_ram
    first_symbolic = m.first_symbolic // FRAME
    hostable[first_symbolic : first_symbolic + placement.n_blocks] = placement.in_pieces
    split_already = np.zeros(n_frames, np.bool_)
    split_already[m.split_frames()] = True
    tally = np.zeros(N_TALLY, np.int64)
    tally[CANDIDATES] = np.count_nonzero(split_already & hostable & (special == 0))
    n_1g = m.counts()[Level.G1]
    most = m.counts()[Level.M2] + n_1g * (GIGA // FRAME)  # 2M frames that a large entry maps, and could be split
    if stream.n_put_back or stream.steps.has_pgd.any():  # or put back first, or new
        most = m.first_symbolic // FRAME

    requests = stream.requests
    dest = np.where(placement.swallowed[requests.owner()], GONE, placement.dest)
    dest = np.where(dest >= SYMBOLIC, dest - SYMBOLIC + m.first_symbolic, dest)
    acts = placement.acts
    log = new_log(n_frames + len(entries.giga_level) + stream.n_put_back * (1 + FRAME) + 1)
    curves = np.zeros((4, len(stream.grid_ns)), np.int64)
    window = Window(*(_padded(edge, n_frames, fill) for edge, fill in zip(stream.window, _OPEN, strict=True)))
    steps = stream.steps
    status = walk_steps(
        entries, log, window,
        steps.op, steps.row, steps.entry_ns, steps.exit_ns, steps.pfn, steps.n_pages, steps.n_done,
        steps.mask_set, steps.mask_clr, steps.force_split, steps.has_pgd, steps.seen_level, steps.seen_attrs,
        steps.mask_id, steps.page_first, steps.page_owned, dest,
        np.searchsorted(steps.exit_ns, acts.ts_ns, side="left"), acts.ts_ns,
        np.where(acts.place >= SYMBOLIC, acts.place - SYMBOLIC + m.first_symbolic, acts.place),
        acts.n_pages, acts.mask_set, acts.mask_clr,
        special, hostable, split_already, np.zeros(n_frames, np.bool_), tally, stream.grid_ns, curves,
        np.full((MAX_MASKS, KNOWN_CODES), -1, np.int32),
    )  # fmt: skip
    raise_failure(status, stream.trace.path)
    try:
        m.check_room()
    except TraceError as error:
        raise TraceError(f"{stream.trace.path}: {error}") from None
    hosted, sym = int(tally[HOSTED]), int(tally[SPLIT_SYM])
    real, live_real, live_sym = int(tally[SPLIT_REAL]), int(tally[LIVE_REAL]), int(tally[LIVE_SYM])
    giga = int(tally[GIGA_REAL])
    return Walk(
        map=m,
        log=log,
        split_2m=(min(real + sym - hosted, most), min(real + sym, most)),
        split_1g=(giga, max(giga, min(giga + placement.n_blocks, n_1g))),
        live_end=(min(live_real + max(0, live_sym - hosted), most), min(live_real + live_sym, most)),
        live_peak=(min(int(tally[PEAK_LO]), most), min(int(tally[PEAK_HI]), most)),
        n_split_real=real,
        n_steps=int(tally[STEPS]),
        n_split_again=int(log.n[0]) - real - sym - giga,
        curves=np.minimum(curves, most),
    )


def _padded(edge: Int64, n_frames: int, fill: int) -> Int64:
    """A window that covers the symbolic frames too: every change counts there."""
    return np.concatenate((edge[:n_frames], np.full(max(0, n_frames - len(edge)), fill, np.int64)))
