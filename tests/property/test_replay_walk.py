"""The compiled walk against the same thing said plainly: every page looked up, every frame counted anew each time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.directmap import DirectMap, Window, change_range, new_log
from collect.schema import Level, Pte
from collect.trace import open_trace
from replay.engine import walk
from replay.placement import SYMBOLIC, Placement
from replay.policies import POLICIES
from replay.steps import SPLIT_LEFT
from replay.stream import Stream, decode
from tests.machine import write_trace

ORDINARY = int(Pte.P | Pte.RW)


class PlainWalk:
    """A map, and lists of what happened to it."""

    def __init__(self, stream: Stream, placement: Placement) -> None:
        self.stream = stream
        self.map: DirectMap = stream.start_map(placement.n_blocks)
        n_frames = self.map.n_pages // 512
        lo, hi = stream.window
        more = n_frames - len(lo)
        self.window = Window(
            np.concatenate((lo, np.full(more, -1, np.int64))), np.concatenate((hi, np.full(more, 1 << 62, np.int64)))
        )
        self.split: dict[int, None] = {}
        self.in_pieces = placement.in_pieces
        self.hosted = 0
        self.hosted_whole = 0
        self.n_1g = 0
        self.n_steps = 0
        self.peak = (0, 0)
        owner = stream.requests.owner()
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
        ts, place, n_pages, mask_set, mask_clr = act[:5]
        for i in range(n_pages):
            self.change(-1, ts, ts, self.real(place + i), 1, 1, mask_set, mask_clr, False, False)

    def step(self, s: int) -> None:
        steps = self.stream.steps
        if steps.op[s] == SPLIT_LEFT:  # the machine's calls fail with a 1G entry split and nothing else
            assert steps.seen_level[s] == Level.G1
            self.n_1g += self.map.split(int(steps.pfn[s]), int(steps.seen_level[s]))
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
                )  # fmt: skip

    def change(
        self, row: int, entry: int, leave: int, pfn: int, n: int, done: int, mask_set: int, mask_clr: int,
        force: bool, pgd: bool,
    ) -> None:  # fmt: skip
        log = new_log(4096)
        change_range(
            self.map.entries, log, self.window, row, entry, leave, pfn, n, done,
            np.uint64(mask_set), np.uint64(mask_clr), force, pgd,
        )  # fmt: skip
        self.n_steps += 1
        for at in range(int(log.n[0])):
            frame = int(log.pfn[at]) // 512
            if log.level[at] == Level.G1:
                self.n_1g += 1
            elif frame not in self.split:
                self.split[frame] = None
                if frame * 512 >= self.map.first_symbolic:
                    if self.in_pieces[frame - self.map.first_symbolic // 512]:
                        self.hosted += 1
                    elif self.candidates() > self.hosted_whole:
                        self.hosted_whole += 1
                        self.hosted += 1
        lo, hi = self.live()
        self.peak = max(self.peak[0], lo), max(self.peak[1], hi)

    def n_special(self, frame: int) -> int:
        attrs = self.map.pages_of([frame])[0]
        return int(np.count_nonzero((attrs != 0) & (attrs & np.uint64(ORDINARY) != np.uint64(ORDINARY))))

    def candidates(self) -> int:
        return sum(
            bool(self.stream.whole_ram[frame]) and self.n_special(frame) == 0
            for frame in self.map.split_frames().tolist()
        )

    def live(self) -> tuple[int, int]:
        live = [frame for frame in self.split if self.n_special(frame)]
        symbolic = sum(frame * 512 >= self.map.first_symbolic for frame in live)
        return len(live) - symbolic + max(0, symbolic - self.hosted), len(live)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["5.10", "6.1"]), st.sampled_from(sorted(POLICIES)))
def test_the_walk_says_what_plain_python_says(seed: int, style: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stream = decode(open_trace(write_trace(Path(directory) / "t", seed, scale=0.05, kernel_style=style)))
    placement = POLICIES[name].place(stream.requests, stream.host).placements[0]
    plain, done = PlainWalk(stream, placement), walk(stream, placement)
    symbolic = sum(frame * 512 >= plain.map.first_symbolic for frame in plain.split)
    assert done.split_2m == (len(plain.split) - plain.hosted, len(plain.split))
    assert done.n_split_real == len(plain.split) - symbolic
    assert done.split_1g[0] == plain.n_1g
    assert done.live_end == plain.live()
    assert done.live_peak == plain.peak
    assert done.n_steps == plain.n_steps
    for mine, theirs in zip(done.map.runs(), plain.map.runs(), strict=True):
        assert np.array_equal(mine, theirs)
    assert done.map.counts(symbolic=True) == plain.map.counts(symbolic=True)
