"""The compiled walk against the same thing said plainly: every page looked up, every frame counted anew each time."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.directmap import DirectMap, Window, change_range, new_log
from analyze.entries import collapse_frame, collapse_giga
from collect.schema import Level, Pte
from collect.trace import open_trace
from replay.engine import walk
from replay.placement import NOBODY, SYMBOLIC, Acts, Placement
from replay.policies import POLICIES
from replay.steps import SPLIT_LEFT
from replay.stream import Stream, decode
from tests.machine import write_trace

ORDINARY = int(Pte.P | Pte.RW)
IGNORED = int(Pte.A | Pte.D | Pte.G)


class PlainWalk:
    """A map, and lists of what happened to it."""

    def __init__(self, stream: Stream, placement: Placement, ignored: int | None = None) -> None:
        self.stream = stream
        self.ignored = ignored
        self.map: DirectMap = stream.start_map(placement.n_blocks)
        n_frames = self.map.n_pages // 512
        lo, hi = stream.window
        more = n_frames - len(lo)
        self.window = Window(
            np.concatenate((lo, np.full(more, -1, np.int64))), np.concatenate((hi, np.full(more, 1 << 62, np.int64)))
        )
        self.split: dict[int, int] = {}  # frame: who split it first
        self.split_ns: dict[int, int] = {}  # when, as late as what came before it
        self.now = 0
        self.special: dict[int, int] = {}  # frame that was changed: its special pages
        self.in_pieces = placement.in_pieces
        self.apart = placement.apart
        self.hosted = 0
        self.hosted_whole = 0
        self.giga: set[int] = set()
        self.n_splits = [0, 0]  # of real entries, of symbolic ones
        self.n_merges = [0, 0]
        self.keep_small: set[int] = set()
        self.n_steps = 0
        self.peak = (0, 0)
        owner = stream.requests.owner
        self.user = stream.requests.user[owner].tolist()
        self.dest = [
            -1 if placement.swallowed[owner[i]] else int(place) for i, place in enumerate(placement.dest.tolist())
        ]
        acts = list(
            zip(*(getattr(placement.acts, n).tolist() for n in placement.acts.__dataclass_fields__), strict=True)
        )
        for step in range(len(stream.steps)):
            while acts and acts[0][0] <= stream.steps.exit_ns[step]:
                self.act(acts.pop(0))
            self.step(step)
        while acts:
            self.act(acts.pop(0))

    def real(self, place: int) -> int:
        return place - SYMBOLIC + self.map.first_symbolic if place >= SYMBOLIC else place

    def act(self, act: tuple[int, ...]) -> None:
        ts, place, n_pages, piece, mask_set, mask_clr = act[:6]
        for i in range(0, n_pages, piece):
            n = min(piece, n_pages - i)
            self.change(-1, ts, ts, self.real(place + i), n, n, mask_set, mask_clr, False, False, act[-1])

    def step(self, s: int) -> None:
        steps = self.stream.steps
        if steps.op[s] == SPLIT_LEFT:  # the machine's calls fail with a 1G entry split and nothing else
            assert steps.seen_level[s] == Level.G1
            if self.map.split(int(steps.pfn[s]), int(steps.seen_level[s])):
                self.giga.add(int(steps.pfn[s]) >> 18)
                self.n_splits[0] += 1
            return
        n, done = int(steps.n_pages[s]), int(steps.n_done[s])
        owned = steps.page_owned[steps.page_first[s] : steps.page_first[s + 1]].tolist() or [-1] * n
        places = [self.real(self.dest[page]) if page >= 0 else int(steps.pfn[s]) + i for i, page in enumerate(owned)]
        runs: list[list[int]] = []  # [index, place, length]
        for i, place in enumerate(places):
            if place < 0:
                runs.append([i, -1, 1])
            elif runs and runs[-1][1] >= 0 and runs[-1][1] + runs[-1][2] == place:
                runs[-1][2] += 1
            else:
                runs.append([i, place, 1])
        for i, place, length in runs:
            if place >= 0 and done > i:
                self.change(
                    int(steps.row[s]), int(steps.entry_ns[s]), int(steps.exit_ns[s]), place, length,
                    min(length, done - i), int(steps.mask_set[s]), int(steps.mask_clr[s]),
                    bool(steps.force_split[s]), bool(steps.has_pgd[s]),
                    self.user[owned[i]] if owned[i] >= 0 else NOBODY,
                )  # fmt: skip

    def change(
        self, row: int, entry: int, leave: int, pfn: int, n: int, done: int, mask_set: int, mask_clr: int,
        force: bool, pgd: bool, who: int,
    ) -> None:  # fmt: skip
        log = new_log(4096)
        change_range(
            self.map.entries, log, self.window, row, entry, leave, pfn, n, done,
            np.uint64(mask_set), np.uint64(mask_clr), force, pgd,
        )  # fmt: skip
        self.n_steps += 1
        self.now = max(self.now, leave)
        touched = range(pfn // 512, (pfn + done - 1) // 512 + 1)
        self.special |= {frame: self.n_special(frame) for frame in touched}
        for at in range(int(log.n[0])):
            frame = int(log.pfn[at]) // 512
            symbolic = frame * 512 >= self.map.first_symbolic
            self.n_splits[symbolic] += 1
            if log.level[at] == Level.G1:
                self.giga.add(frame >> 9)
            elif frame not in self.split:
                self.split[frame] = who
                self.split_ns[frame] = self.now
                if symbolic and not self.apart:
                    if self.in_pieces[frame - self.map.first_symbolic // 512]:
                        self.hosted += 1
                    elif self.candidates() > self.hosted_whole:
                        self.hosted_whole += 1
                        self.hosted += 1
        lo, hi = self.live()
        self.peak = max(self.peak[0], lo), max(self.peak[1], hi)
        if self.ignored is not None:
            for frame in touched:
                if force:
                    self.keep_small.add(frame)
                if frame not in self.keep_small:
                    self.merge(frame)

    def merge(self, frame: int) -> None:
        m = self.map.entries
        if m.giga_level[frame >> 9] != Level.M2 or m.frame_level[frame] != Level.K4 or self.n_special(frame):
            return
        attrs = self.map.pages_of([frame])[0]
        cared = {int(word) & ~self.ignored for word in attrs}
        if 0 in attrs or len(cared) != 1:
            return
        m.slabs[m.frame_slab[frame]] = m.slabs[m.frame_slab[frame], 0]  # one entry has the first one's flags
        assert collapse_frame(m, frame)
        symbolic = frame * 512 >= self.map.first_symbolic
        self.n_merges[symbolic] += 1
        if symbolic:
            return
        around = np.arange(frame >> 9 << 9, (frame >> 9) + 1 << 9)
        words = {int(word) & ~self.ignored for word in self.map.attrs_of(around * 512)}
        if (m.frame_level[around] == Level.M2).all() and len(words) == 1:
            m.frame_code[around] = m.frame_code[around[0]]
            assert collapse_giga(m, frame >> 9)
            self.n_merges[0] += 1

    def n_special(self, frame: int) -> int:
        m = self.map.entries
        if m.giga_level[frame >> 9] != Level.M2 or m.frame_level[frame] != Level.K4:
            return 0
        attrs = self.map.pages_of([frame])[0]
        return int(np.count_nonzero((attrs != 0) & (attrs & np.uint64(ORDINARY) != np.uint64(ORDINARY))))

    def candidates(self) -> int:
        return sum(
            bool(self.stream.whole_ram[frame]) and self.n_special(frame) == 0
            for frame in self.map.split_frames().tolist()
        )

    def live(self) -> tuple[int, int]:
        live = [frame for frame in self.split if self.special[frame]]
        symbolic = sum(frame * 512 >= self.map.first_symbolic for frame in live)
        return len(live) - symbolic + max(0, symbolic - self.hosted), len(live)


def compare(stream: Stream, placement: Placement, ignored: int | None = None) -> PlainWalk:
    plain, done = PlainWalk(stream, placement, ignored), walk(stream, placement, merge_ignoring=ignored)
    symbolic = [frame for frame in plain.split if frame * 512 >= plain.map.first_symbolic]
    assert done.split_2m == (len(plain.split) - plain.hosted, len(plain.split))
    assert done.split_1g[0] == len(plain.giga)
    assert done.live_end == plain.live()
    assert done.live_peak == plain.peak
    assert done.n_steps == plain.n_steps
    assert done.splits[1] == sum(plain.n_splits) + done.split_1g[1] - done.split_1g[0]
    assert done.merges[1] == sum(plain.n_merges)
    for who in range(NOBODY + 1):
        frames = [frame for frame, by in plain.split.items() if by == who]
        perhaps = set() if placement.apart else set(frames) & set(symbolic)
        assert done.by_user[:, who].tolist() == [len(frames) - len(perhaps), len(perhaps)]
        for half, some in enumerate((set(frames) - perhaps, perhaps)):
            times = np.sort([plain.split_ns[frame] for frame in some])
            until = np.searchsorted(times, stream.grid_ns, side="right")
            assert np.array_equal(done.by_user_curves[half, who], until)
    for mine, theirs in zip(done.map.runs(), plain.map.runs(), strict=True):
        assert np.array_equal(mine, theirs)
    assert done.map.counts(symbolic=True) == plain.map.counts(symbolic=True)
    return plain


@pytest.mark.parametrize("name", sorted(POLICIES))
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    style=st.sampled_from(["5.10", "6.1"]),
    ignored=st.sampled_from([None, int(Pte.A | Pte.D), IGNORED]),
)
def test_the_walk_says_what_plain_python_says(name: str, seed: int, style: str, ignored: int | None) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stream = decode(open_trace(write_trace(Path(directory) / "t", seed, scale=0.03, kernel_style=style)))
    compare(stream, POLICIES[name].place(stream.requests, stream.host).placements[-1], ignored)


@pytest.mark.parametrize("ignored", [None, IGNORED])
def test_acts_on_ranges_and_on_single_pages(tmp_path: Path, ignored: int | None) -> None:
    """Whole blocks keep their entry, parts split it; what is put back may merge, and be split again."""
    stream = decode(open_trace(write_trace(tmp_path / "t", 5, scale=0.05, kernel_style="6.1")))
    ns = int(stream.steps.exit_ns[len(stream.steps) // 2])
    at = np.array([ns], np.int64)
    pfn = int(np.flatnonzero(stream.start_map().frame_levels() == Level.G1)[7]) * 512
    acts = Acts.joined(
        Acts.of(at, np.array([SYMBOLIC]), 512, whole=True, mask_clr=ORDINARY),
        Acts.of(at + 1, np.array([SYMBOLIC + 512]), 3, mask_clr=ORDINARY, user=2),
        Acts.of(at + 2, np.array([SYMBOLIC + 512]), 3, whole=True, mask_set=ORDINARY),
        Acts.of(at + 3, np.array([SYMBOLIC + 513]), 1, mask_clr=int(Pte.RW), user=3),
        Acts.of(at + 4, np.array([SYMBOLIC]), 512, whole=True, mask_set=ORDINARY),
        Acts.of(at + 5, np.array([pfn]), 1, mask_clr=int(Pte.RW), user=1),
        Acts.of(at + 6, np.array([pfn]), 1, mask_set=int(Pte.RW)),
    )
    requests = stream.requests
    placement = Placement(dest=requests.pfn.copy(), swallowed=np.zeros(len(requests), np.bool_), n_blocks=2, acts=acts)
    plain = compare(stream, placement, ignored)
    assert (plain.map.first_symbolic // 512 in plain.split) is False
    assert plain.split[plain.map.first_symbolic // 512 + 1] == 2
    assert plain.split[pfn // 512] == 1
    assert (sum(plain.n_merges) >= 3) == (ignored is not None)  # the block's frame, the real frame, its 1G range
    other = replace(placement, acts=Acts.none())
    assert walk(stream, other).n_steps == walk(stream, placement).n_steps - 9
