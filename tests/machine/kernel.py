"""A machine with a direct map: concurrent tasks that change it through the kernel's API, call by call.

Tasks are generators; every `yield` is a point where another task may run, so calls overlap in time as on a real
machine with several CPUs. What the recorder would see of it is written down as it happens.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from collect.schema import NO_PFN, Cpa, Moment, PageEvent, Pte, RegionEvent, Space, Tier
from tests.machine.pages import SIZE, PageModel
from tests.machine.recorder import Recorder

Steps = Generator[None, None, None]

GIGA = SIZE[3]
MAX_PFN = 4 * GIGA
RANGES = ((0, 0xA0), (0x100, GIGA + GIGA // 2), (2 * GIGA, 4 * GIGA))
RODATA = (10240, 12288)
IMAGE = (8192, 16384)  # the high mapping of the kernel: text, rodata, data
DIRECT = int(Pte.P | Pte.RW | Pte.A | Pte.D | Pte.G | Pte.NX)
READ_ONLY = DIRECT & ~int(Pte.RW | Pte.D)
PAGE_OFFSET = 0xFFFF_9123_4000_0000
IMAGE_BASE = 0xFFFF_FFFF_8200_0000
RW, P, NX = int(Pte.RW), int(Pte.P), int(Pte.NX)


@dataclass(frozen=True)
class Task:
    """A thread that makes calls."""

    pid: int
    tgid: int
    comm: str
    cpu: int


class Machine:
    """Memory, clock and the recorder's view. `style`: whose kernel's names, caches and alias rules ("5.10", "6.1" or "6.12")."""

    def __init__(self, seed: int, style: str) -> None:
        self.random = random.Random(seed)
        self.style = style
        self.now_ns = 10_000_000_000
        self.recorder = Recorder()
        self.recording = False
        self.open = [RANGES[1]]  # memory given out; that of the 1G leaves stays whole at first
        self.pages = PageModel(MAX_PFN, RODATA)
        self.image = PageModel(IMAGE[1])
        self.splits = {2: 0, 3: 0}
        self.frozen = False
        self.in_flight = 0
        self.used: set[int] = set()
        self.touched: list[tuple[int, int]] = []  # (page, exit) of direct-map changes, for snapshots
        self.next_address = 0xFFFF_C900_0000_0000
        self._boot()

    def _boot(self) -> None:
        self.pages.fill(0, 0xA0, 1, DIRECT)
        self.pages.fill(0x100, 512 - 0x100, 1, DIRECT)
        self.pages.fill(512, 2 * 512 - 1 + 256, 2, DIRECT)
        self.pages.fill(2 * GIGA, 2, 3, DIRECT)
        self.pages.change(IMAGE[0], RODATA[1] - IMAGE[0], 0, RW | int(Pte.D))
        self.image.fill(IMAGE[0], (RODATA[1] - IMAGE[0]) // 512, 2, READ_ONLY & ~NX)
        self.image.fill(RODATA[1], (IMAGE[1] - RODATA[1]) // 512, 2, DIRECT)

    def tick(self) -> int:
        self.now_ns += self.random.randrange(50, 4000)
        return self.now_ns

    # Memory

    def allocate(self, n: int, *, scope: int = 0, region: int = 0, task: Task | None = None) -> list[int]:
        """`n` free pages in small clumps from all over memory, as a long-running buddy allocator would give them."""
        got: list[int] = []
        while len(got) < n:
            first, end = self.random.choice(self.open)
            at = self.random.randrange(first, end)
            for pfn in range(at, min(end, at + self.random.choice((1, 1, 2, 4, 8, 16)))):
                if len(got) < n and pfn not in self.used and not IMAGE[0] <= pfn < IMAGE[1]:
                    self.used.add(pfn)
                    got.append(pfn)
        self._page_events(PageEvent.ALLOC_BULK, got, scope, region, task)
        return got

    def free(self, pfns: Iterable[int], *, scope: int = 0, region: int = 0, task: Task | None = None) -> None:
        pfns = list(pfns)
        self.used.difference_update(pfns)
        self._page_events(PageEvent.FREE, pfns, scope, region, task)

    def _page_events(self, event: PageEvent, pfns: list[int], scope: int, region: int, task: Task | None) -> None:
        if not (self.recording and scope and task):
            return
        for pfn in pfns:
            self.recorder.rows["pages"].append(
                {
                    "ts_ns": self.tick(), "event": int(event), "pfn": pfn, "order": 0,
                    "gfp": 0xDC2 if event != PageEvent.FREE else 0, "migratetype": 0, "cpu": task.cpu, "pid": task.pid,
                    "scope": scope, "region_id": region, "stack_id": 0,
                }
            )  # fmt: skip

    def address(self, n_pages: int) -> int:
        """A fresh virtual area with a guard page behind it."""
        self.next_address += (n_pages + 1) * 4096
        return self.next_address - (n_pages + 1) * 4096

    def region(
        self,
        task: Task,
        event: RegionEvent,
        tier: Tier,
        kind: int,
        region: int,
        *,
        parent: int = 0,
        address: int = 0,
        n_bytes: int = 0,
        pfns: Iterable[int] = (),
        name: str = "",
        stack: tuple[str, ...] = (),
    ) -> None:
        if not self.recording:
            return
        self.recorder.rows["regions"].append(
            {
                "ts_ns": self.tick(), "event": int(event), "tier": int(tier), "kind": int(kind), "region_id": region,
                "parent_id": parent, "cpu": task.cpu, "pid": task.pid, "tgid": task.tgid,
                "comm_id": self.recorder.string(task.comm), "name_id": self.recorder.string(name) if name else 0,
                "stack_id": self.recorder.stack(stack) if stack else 0, "address": address, "n_bytes": n_bytes,
                "map_level": 1 if address else 0, "pfns": list(pfns), "n_pfns_lost": 0,
            }
        )  # fmt: skip

    # The choke point

    def direct_address(self, pfn: int) -> int:
        return PAGE_OFFSET + pfn * 4096

    def call(
        self,
        task: Task,
        stack: tuple[str, ...],
        pfns: list[int],
        mask_set: int,
        mask_clr: int,
        *,
        space: Space = Space.DIRECT_MAP,
        address: int = 0,
        flags: int = 0,
        check_alias: bool = True,
        force_split: bool = False,
        parent: int = 0,
        fails_at: int | None = None,
    ) -> Steps:
        """One call of __change_page_attr_set_clr on neighbouring pages (or a pages array), nested calls included.

        `fails_at`: pages completed when no page is left for another table; what was split above the next one stays.
        """
        while self.frozen and not parent:
            yield
        self.in_flight += not parent
        array = bool(flags & Cpa.PAGES_ARRAY)
        model = self.image if space == Space.KERNEL_IMAGE else self.pages
        mapped = space != Space.OTHER
        row: dict[str, Any] = {
            "ts_ns": self.tick(), "kind": 0, "call_id": self.recorder.new_id(), "parent_id": parent,
            "depth": int(parent != 0), "cpu": task.cpu, "pid": task.pid, "tgid": task.tgid,
            "comm_id": self.recorder.string(task.comm), "stack_id": 0 if parent else self.recorder.stack(stack),
            "space": int(space), "pfn": pfns[0] if pfns else NO_PFN, "n_pages": len(pfns), "n_done": len(pfns),
            "address": 0 if array else (self.direct_address(pfns[0]) if space == Space.DIRECT_MAP else address),
            "mask_set": mask_set, "mask_clr": mask_clr, "flags": flags, "force_split": int(force_split), "has_pgd": 0,
            "check_alias": int(check_alias), "has_exit": 1, "ret": 0, "pfns": pfns if array else [], "n_pfns_lost": 0,
        }  # fmt: skip
        row["level_before"], row["attrs_before"] = self._look(model, pfns[0]) if mapped else (1, P)
        yield
        if not mapped:
            for part, some_set, some_clr in self._aliases(pfns, mask_set, mask_clr) if check_alias else ():
                yield from self.call(task, (), part, some_set, some_clr, check_alias=False, parent=row["call_id"])
        else:
            for first, n in [(pfn, 1) for pfn in pfns] if array else [(pfns[0], len(pfns))]:
                done = n if fails_at is None else fails_at
                made = model.change(first, n, mask_set, mask_clr, force_split=force_split, n_done=done)
                if fails_at is not None:
                    row |= {"ret": -12, "n_done": fails_at}
                    page = first + fails_at
                    made += [(3, page)] if model.split(page, 3) else []
                for level, leaf in made:
                    self.splits[level] += 1
                    self._split_seen(task, row["call_id"], space, model, level, max(leaf, first))
            if space == Space.KERNEL_IMAGE and check_alias:
                yield from self.call(task, (), pfns, mask_set, mask_clr, check_alias=False, parent=row["call_id"])
            elif self.random.random() < 0.05:
                yield
        if self.style == "6.12" and not (mask_set | mask_clr or force_split):
            row["n_done"] = 0  # it has returned at once
        last = pfns[max(row["n_done"], 1) - 1]
        for end, pfn in (("first", pfns[0]), ("last", last)):
            row[f"level_{end}"], row[f"attrs_{end}"] = self._look(model, pfn) if mapped else (1, P)
        row["duration_ns"] = self.tick() - row["ts_ns"]
        if space == Space.DIRECT_MAP:
            self.touched += [(pfn, self.now_ns) for pfn in pfns]
        if self.recording:
            self.recorder.rows["changes"].append(row)
        self.in_flight -= not parent

    def _aliases(self, pfns: list[int], mask_set: int, mask_clr: int) -> Iterator[tuple[list[int], int, int]]:
        """Calls that cpa_process_alias makes: to 6.1 none where NX alone changes (checkalias is 0); from 6.2 on without NX, which
        may leave them nothing to do. Those are on several pages here, as where vmalloc has mapped large pages.
        """
        if self.style != "6.12":
            if mask_set | mask_clr != NX:
                yield from (([pfn], mask_set, mask_clr) for pfn in pfns)
            return
        mask_set, mask_clr = mask_set & ~NX, mask_clr & ~NX
        first = 0
        for i in range(1, len(pfns) + 1):
            if i == len(pfns) or mask_set | mask_clr or pfns[i] != pfns[i - 1] + 1:
                yield pfns[first:i], mask_set, mask_clr
                first = i

    def _split_seen(self, task: Task, call_id: int, space: Space, model: PageModel, level: int, page: int) -> None:
        if not self.recording:
            return
        address = self.direct_address(page) if space == Space.DIRECT_MAP else IMAGE_BASE + (page - IMAGE[0]) * 4096
        self.recorder.rows["splits"].append(
            {
                "ts_ns": self.tick(), "call_id": call_id, "cpu": task.cpu, "pid": task.pid, "space": int(space),
                "address": address, "pfn": page, "level": level - 1, "attrs": model.attrs[page],
            }
        )  # fmt: skip

    def _look(self, model: PageModel, pfn: int) -> tuple[int, int]:
        """What the probe's page-table walk sees; the CPU has set A and D on some of the pages."""
        attrs = model.attrs[pfn]
        if attrs & P and self.random.random() < 0.1:
            attrs |= int(Pte.A) | (int(Pte.D) if attrs & RW else 0)
        return model.level[pfn], attrs

    # Snapshots and counters

    def counters(self) -> None:
        ts = self.tick()
        leaves = {level: self.pages.level.count(level) // SIZE[level] for level in (1, 2, 3)}
        for level, name, kb in ((1, "4k", 4), (2, "2M", 2048), (3, "1G", 1 << 20)):
            self.recorder.counter(ts, f"meminfo/DirectMap{name}", leaves[level] * kb)
        if self.style != "5.10":
            for level in (2, 3):
                self.recorder.counter(ts, f"vmstat/direct_map_level{level}_splits", self.splits[level])
        for order in range(11):
            self.recorder.counter(ts, f"buddyinfo/0/Normal/{order}", 1000 >> order)

    def snapshot(self, moment: Moment, number: int) -> Steps:
        """Read the tables piece by piece while others run, then read again what they changed, with nobody running."""
        self.touched.clear()
        began = self.now_ns
        pieces: dict[int, tuple[int, int, list[tuple[int, int, int, int]]]] = {}
        for first in range(0, MAX_PFN, GIGA):
            leaf = self.pages.level[first] == 3
            for piece in (first,) if leaf else range(first, first + GIGA, 512):
                end = piece + (GIGA if leaf else 512)
                pieces[piece] = (end, self.now_ns, list(self.pages.runs(piece, end)))
                if self.random.random() < 0.02:
                    self.tick()
                    yield
        self.frozen = True
        while self.in_flight:
            yield
        again = {pfn - pfn % 512 for pfn, ts in self.touched if ts >= began}
        for piece in sorted(again):
            whole = piece - piece % GIGA
            if whole in pieces and pieces[whole][0] - whole == GIGA:
                del pieces[whole]
                for start in range(whole, whole + GIGA, 512):
                    pieces[start] = (start + 512, self.tick(), [])
                if self.pages.level[whole] == 3:
                    for start in range(whole + 512, whole + GIGA, 512):
                        del pieces[start]
                    pieces[whole] = (whole + GIGA, self.now_ns, list(self.pages.runs(whole, whole + GIGA)))
                    continue
                for start in range(whole, whole + GIGA, 512):
                    pieces[start] = (start + 512, self.now_ns, list(self.pages.runs(start, start + 512)))
            else:
                pieces[piece] = (piece + 512, self.tick(), list(self.pages.runs(piece, piece + 512)))
        self.tick()
        for _, ts, runs in pieces.values():
            self._snapshot_rows(moment, number, Space.DIRECT_MAP, ts, runs)
        self._snapshot_rows(moment, number, Space.KERNEL_IMAGE, self.now_ns, self.image.runs(IMAGE[0], IMAGE[1]))
        if moment in (Moment.PERIODIC, Moment.REQUEST):
            told = {"": number, "_rounds": int(bool(again)), "_frames_again": len(again), "_frames_unstable": 0}
            for name, value in told.items():
                self.recorder.counter(self.now_ns, f"recorder/snapshot{name}", value)
        self.frozen = False

    def _snapshot_rows(
        self, moment: Moment, number: int, space: Space, ts: int, runs: Iterable[tuple[int, int, int, int]]
    ) -> None:
        for pfn, level, n_leaves, attrs in runs:
            dirty = int(Pte.A) if attrs & P and self.random.random() < 0.1 else 0
            self.recorder.rows["snapshots"].append(
                {
                    "snapshot": number, "moment": int(moment), "ts_ns": ts, "ts_end_ns": ts + 10, "space": int(space),
                    "pfn": pfn, "level": level, "n_leaves": n_leaves, "attrs": attrs | dirty,
                }
            )  # fmt: skip
