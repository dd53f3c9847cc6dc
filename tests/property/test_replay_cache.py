"""The compiled caches against plain Python written for reading, and conservation: every page is free, cached or in use, once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import replay.block_pools
import replay.unmapped_cache
from collect.errors import TraceError
from replay.block_pools import run_pools
from replay.cache_rules import CacheRules
from replay.placement import Host
from replay.prog_packs import run_packs
from replay.unmapped_cache import run_cache

Events = list[tuple[str, int, bool]]
"""(alloc | free | shrink, pages or which living request or pages asked for, whether an alloc is of order 9)."""


@dataclass
class PlainCache:
    """The RFC's lists with Python's: the end of a list is its head."""

    available: list[int] | None  # free blocks by order, or unlimited
    rules: CacheRules
    lists: list[list[int]] = field(default_factory=lambda: [[] for _ in range(11)])
    refills: list[tuple[int, int, int]] = field(default_factory=list)  # order, asked, block
    releases: list[tuple[int, int]] = field(default_factory=list)  # page, order
    bit: dict[int, bool] = field(default_factory=dict)
    out: dict[int, int] = field(default_factory=dict)
    spare: list[int] = field(default_factory=list)
    n_blocks: int = 0
    taken: int = 0
    absorbed: int = 0

    def take(self, order: int) -> int | None:
        for k in range(order, 11):
            if self.lists[k]:
                page = self.lists[k].pop()
                for half in range(k - 1, order - 1, -1):
                    self.lists[half].append(page + (1 << half))
                return page
        return None

    def has(self, k: int) -> bool:
        if self.available is None:
            return True
        return sum(n << j for j, n in enumerate(self.available) if j >= k) - self.taken >= 1 << k

    def alloc(self, order: int) -> int | None:
        page = self.take(order)
        if page is not None:
            return page
        for k in sorted(self.rules.orders, reverse=True):
            if k >= order and self.has(k):
                self.taken += 1 << k
                if k == 9 and self.spare:
                    block = self.spare.pop()
                else:
                    block, self.n_blocks = self.n_blocks, self.n_blocks + 1
                self.refills.append((k, order, block))
                self.bit[block], self.out[block] = True, 0
                joined = 9 if self.rules.hopeful and self.rules.merge else k
                self.absorbed += (1 << joined) - (1 << k)
                self.insert(512 * block, joined)
                return self.take(order)
        return None

    def insert(self, page: int, order: int) -> None:
        if not self.rules.merge:
            self.lists[0] += range(page + (1 << order) - 1, page - 1, -1)
            return
        while order < 9 and (page ^ (1 << order)) in self.lists[order]:
            self.lists[order].remove(page ^ (1 << order))
            page &= ~(1 << order)
            order += 1
        self.lists[order].append(page)

    def leave(self, page: int, order: int) -> None:
        block = page // 512
        self.out[block] += 1 << order
        self.taken -= 1 << order
        if self.rules.hopeful and self.out[block] == 512:
            self.bit[block] = False
            self.spare.append(block)

    def give(self, page: int) -> None:
        if self.bit[page // 512]:
            self.insert(page, 0)
        else:
            self.leave(page, 0)

    def shrink(self, n_to_scan: int) -> None:
        scanned, gone = 0, []
        for order in range(10, -1, -1) if self.rules.descending else range(11):
            freed = 0
            while freed < n_to_scan and self.lists[order]:
                page = self.lists[order].pop()
                gone.append((page, order))
                if order == 9 or self.rules.clear_bit:
                    self.bit[page // 512] = False
                freed += 1 << order
            scanned += freed
            if scanned >= n_to_scan:
                break
            n_to_scan -= scanned
        self.releases += gone
        for page, order in gone:
            if self.rules.hopeful and self.bit[page // 512]:
                self.insert(page, order)
                self.absorbed += 1 << order
            else:
                self.leave(page, order)

    def free_pages(self) -> list[int]:
        return sorted(p + i for order, pages in enumerate(self.lists) for p in pages for i in range(1 << order))


sizes = st.one_of(st.integers(1, 20), st.sampled_from([511, 512, 513, 700, 1024]))
an_event = st.one_of(
    st.tuples(st.just("alloc"), sizes, st.booleans()),
    st.tuples(st.just("free"), st.integers(0, 1 << 30), st.just(False)),
    st.tuples(st.just("shrink"), st.sampled_from([1, 5, 128, 600, 5000]), st.just(False)),
)
streams = st.lists(an_event, max_size=60)
counts = st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=11, max_size=11))
rules_of_caches = st.builds(
    CacheRules,
    orders=st.sampled_from([tuple(range(9, -1, -1)), (9, 0), (4, 3, 2, 1, 0), (3,)]),
    merge=st.booleans(),
    descending=st.booleans(),
    clear_bit=st.booleans(),
    hopeful=st.booleans(),
)


MANY: Events = [
    ("alloc", 61, False),
    ("alloc", 50 * 512, True),
    ("alloc", 40 * 512, False),
    ("free", 1, False),
    ("free", 0, False),
]
MANY = [*MANY, ("shrink", 20_000, False), ("alloc", 30_000, False), ("free", 0, False), ("shrink", 1 << 20, False)]
"""More blocks, refills and releases than there is room for at first, most of them in the middle of a request."""


@dataclass
class Flat:
    """A stream of events as the compiled code takes it; frees pick a living request."""

    events: list[tuple[str, int]] = field(default_factory=list)  # kind, request or pages
    pages: list[int] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, stream: Events) -> Flat:
        flat, living = cls(), list[int]()
        for kind, number, huge in stream:
            if kind == "alloc":
                flat.pages.append(number)
                flat.orders.append(9 if huge else 0)
                living.append(len(flat.pages) - 1)
                flat.events.append((kind, living[-1]))
            elif kind == "free" and living:
                flat.events.append((kind, living.pop(number % len(living))))
            elif kind == "shrink":
                flat.events.append((kind, number))
        return flat

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
        """Requests, whether it is a free, when; and offsets of the pages."""
        rows = [(at, kind, number) for at, (kind, number) in enumerate(self.events) if kind != "shrink"]
        return (
            np.array([number for _, _, number in rows], np.int64),
            np.array([kind == "free" for _, kind, _ in rows], np.bool_),
            np.array([at for at, _, _ in rows], np.int64),
            np.concatenate(([0], np.cumsum(self.pages))).astype(np.int64),
        )

    def host(self, available: list[int] | None) -> Host:
        shrinks = [(at, number) for at, (kind, number) in enumerate(self.events) if kind == "shrink"]
        n = 0 if available is None else 1
        return Host(
            n_nodes=1,
            free_ns=np.zeros(n, np.int64),
            free_blocks=np.array(available or [0] * 11, np.int64).reshape(1, 11)[:n],
            pressure_ns=np.array([at for at, _ in shrinks], np.int64),
            pressure_pages=np.array([number for _, number in shrinks], np.int64),
        )


@settings(max_examples=200, deadline=None)
@given(streams, counts, rules_of_caches)
@example(MANY, [9000] + [0] * 10, CacheRules())
@example(MANY, [100, 50, 200] + [9] * 8, CacheRules(clear_bit=True))
@example(MANY, None, CacheRules(hopeful=True))
@example(MANY, None, CacheRules(merge=False, descending=True))
def test_cache_does_what_plain_python_does_and_loses_no_page(
    stream: Events, available: list[int] | None, rules: CacheRules
) -> None:
    flat = Flat.of(stream)
    *events, first = flat.columns()
    run = run_cache(*events, first, np.array(flat.orders, np.uint8), flat.host(available), rules)

    plain = PlainCache(available, rules)
    held: dict[int, list[int]] = {}
    for at, (kind, number) in enumerate(flat.events):
        if kind == "shrink":
            plain.shrink(number)
        elif kind == "free":
            for page in held.pop(number):
                plain.give(page)
        else:
            got: list[int] = []
            while len(got) < flat.pages[number]:
                order = 9 if flat.orders[number] and flat.pages[number] - len(got) >= 512 else 0
                page = plain.alloc(order)
                if page is None:
                    break
                got += range(page, page + (1 << order))
            if len(got) < flat.pages[number]:
                for page in got:
                    plain.give(page)
                got = []
            held[number] = got
            dest = run.dest[first[number] : first[number + 1]].tolist()
            assert dest == (got or [-1] * flat.pages[number])
        assert run.idle[at] == len(plain.free_pages())

    orders = zip(run.refill_order, run.refill_request_order, run.refill_block, strict=True)
    assert list(orders) == plain.refills
    assert list(zip(run.release_page, run.release_order, strict=True)) == plain.releases
    assert run.n_absorbed == plain.absorbed
    assert sorted(run.free_pages.tolist()) == plain.free_pages()
    in_use = [page for got in held.values() for page in got]
    there = sorted(in_use + run.free_pages.tolist())
    assert len(set(there)) == len(there)  # each page is cached or in use, once
    for block in range(
        run.n_blocks
    ):  # or was given back; what a block holds is what a refill or its neighbours gave it
        held_here = sum(page // 512 == block for page in there)
        order = [order for order, _, b in plain.refills if b == block][-1]
        whole = 512 if rules.hopeful and rules.merge else 1 << order
        assert held_here + run.out[block] == whole
    assert in_use == [] or set(in_use) <= set(run.dest.tolist())


@settings(max_examples=150, deadline=None)
@given(streams, st.one_of(st.none(), st.integers(0, 3)), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 3))
@example(MANY, None, True, True, False, 1)
@example(MANY, 95, False, False, True, 2)
def test_pools_do_what_plain_python_does_and_lose_no_page(
    stream: Events, n_available: int | None, release_unused: bool, compacts: bool, hopeful: bool, n_pools: int
) -> None:
    flat = Flat.of(stream)
    *events, first = flat.columns()
    available = None if n_available is None else [0] * 9 + [n_available, 0]
    pool = np.arange(len(flat.pages), dtype=np.int64) % n_pools
    run = run_pools(
        *events, first, pool, flat.host(available), release_unused=release_unused, compacts=compacts, hopeful=hopeful
    )
    free: dict[int, list[int]] = {}  # block: its free pages, in use those that are missing
    owner: dict[int, int] = {}
    order: list[int] = []  # blocks with a free page, the one that got a page back last at the end
    spare: list[int] = []
    flips: list[tuple[int, int, bool]] = []
    held: dict[int, list[int]] = {}
    n_blocks = n_failed = n_not_served = 0

    def release(at: int, p: int, pages: int) -> None:
        for block in reversed([b for b in order if owner[b] == p]):
            if pages > 0 and len(free[block]) == 512:
                order.remove(block)
                del free[block]
                flips.append((at, block, False))
                if hopeful:
                    spare.append(block)
                pages -= 512

    def back(page: int) -> None:
        if not free[page // 512]:
            order.append(page // 512)
        free[page // 512].append(page)

    for at, (kind, number) in enumerate(flat.events):
        p = number % n_pools
        if kind == "shrink":
            for each in range(n_pools if not release_unused else 0):
                release(at, each, number)
        elif kind == "free":
            for page in held.pop(number):
                back(page)
        else:
            got: list[int] = []
            for _ in range(flat.pages[number]):
                mine = [b for b in order if owner[b] == p]
                if not mine:
                    if n_available is not None and not compacts and len(free) >= n_available:
                        n_failed += 1
                        break
                    if spare:
                        block = spare.pop()
                    else:
                        block, n_blocks = n_blocks, n_blocks + 1
                    free[block] = [block * 512 + i for i in range(511, -1, -1)]
                    owner[block] = p
                    order.append(block)
                    flips.append((at, block, True))
                    mine = [block]
                got.append(free[mine[-1]].pop())
                if not free[mine[-1]]:
                    order.remove(mine[-1])
            if len(got) < flat.pages[number]:
                n_not_served += 1
                for page in got:
                    back(page)
                got = []
            held[number] = got
            dest = run.dest[first[number] : first[number + 1]].tolist()
            assert dest == (got or [-1] * flat.pages[number])
        in_use = any(held.get(r) for r in held if r % n_pools == p)
        if kind != "shrink" and release_unused and not in_use and (kind == "free" or not held[number]):
            release(at, p, 1 << 60)
        assert run.idle[at] == sum(len(pages) for pages in free.values())
    assert list(zip(run.flip_event, run.flip_block, run.flip_in, strict=True)) == flips
    assert (run.n_blocks, run.n_failed, run.n_not_served) == (n_blocks, n_failed, n_not_served)
    pages = [page for got in held.values() for page in got] + [page for there in free.values() for page in there]
    assert sorted(pages) == sorted(block * 512 + i for block in free for i in range(512))  # each once


images = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(1, 12), st.just(False)),
        st.tuples(st.just("free"), st.integers(0, 99), st.just(False)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(images, st.none() | st.integers(0, 11), st.integers(0, 80))
def test_packs_do_what_plain_python_does(stream: Events, old_used: int | None, none_after: int) -> None:
    flat = Flat.of(stream)
    request, is_free, _, _ = flat.columns()
    may_make = np.arange(len(request)) < none_after
    run = run_packs(request, is_free, np.array(flat.pages, np.int64), 10, old_used=old_used, may_make=may_make)
    n_old = min(old_used or 0, 10)
    packs: list[list[int | None]] = [] if old_used is None else [[-1] * n_old + [None] * (10 - n_old)]
    gone: set[int] = set()
    for at, (kind, image) in enumerate(flat.events):
        n = flat.pages[image]
        if kind == "free" and run.pack[image] >= 0:
            pack = packs[run.pack[image]]
            assert pack.count(image) == n
            packs[run.pack[image]] = pack = [None if owner == image else owner for owner in pack]
            if pack == [None] * 10 and not (old_used is not None and run.pack[image] == 0):
                gone.add(int(run.pack[image]))
        elif kind == "alloc":
            fits = [
                (p, i)
                for p, pack in enumerate(packs)
                if p not in gone
                for i in range(10 - n + 1)
                if pack[i : i + n] == [None] * n
            ]
            if not fits and n <= 10 and may_make[at]:
                packs.append([None] * 10)
                fits = [(len(packs) - 1, 0)]
            if fits:
                p, i = fits[0]
                assert (run.pack[image], run.start[image]) == (p, i)
                packs[p][i : i + n] = [image] * n
            else:
                assert run.pack[image] == -1
        live = [pack for p, pack in enumerate(packs) if p not in gone]
        assert run.n_live[at] == len(live)
        assert run.used_chunks[at] == sum(owner is not None for pack in live for owner in pack)
    assert len(run.made_event) == len(packs)
    assert {p for p, event in enumerate(run.gone_event) if event >= 0} == gone


@pytest.mark.parametrize("descending", [False, True])
def test_the_shrinker_subtracts_twice_and_so_stops_early(descending: bool) -> None:
    """Ten pages held, then 1000 asked for: orders ascending take 1 + 2 + 4 + ... until what is left to scan is used up."""
    host = Host(
        1, np.zeros(0, np.int64), np.zeros((0, 11), np.int64),
        pressure_ns=np.array([5]), pressure_pages=np.array([200]),
    )  # fmt: skip
    run = run_cache(
        np.zeros(1, np.int64), np.zeros(1, np.bool_), np.zeros(1, np.int64), np.array([0, 10]), np.zeros(1, np.uint8), host,
        CacheRules(descending=descending),
    )  # fmt: skip
    # free chunks: 2 at 10, 4 at 12, 16 at 16, 32, 64, 128 and 256 at 256
    orders = [8] if descending else [1, 2, 4, 5, 6]
    assert run.release_order.tolist() == orders


def test_more_blocks_than_can_be_followed_are_refused_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of single pages each refill is a piece of its own; a stream may ask for millions of them."""
    for module in (replay.unmapped_cache, replay.block_pools):
        monkeypatch.setattr(module, "MAX_BLOCKS", 100)
    request, is_free, ns = np.arange(1), np.zeros(1, np.bool_), np.arange(1)
    host = Flat.of([]).host([1 << 20] + [0] * 10)
    for n_pages, fits in ((100, True), (102, False)):
        first = np.array([0, n_pages])
        if fits:
            assert run_cache(request, is_free, ns, first, np.zeros(1, np.uint8), host).n_blocks == n_pages
        else:
            with pytest.raises(TraceError, match="more than can be followed"):
                run_cache(request, is_free, ns, first, np.zeros(1, np.uint8), host)
    many = np.array([0, 102 * 512])
    with pytest.raises(TraceError, match="more than can be followed"):
        run_pools(
            request,
            is_free,
            ns,
            many,
            np.zeros(1, np.int64),
            Flat.of([]).host(None),
            release_unused=True,
            compacts=True,
            hopeful=False,
        )


def test_a_block_that_comes_and_goes_needs_more_refills_than_blocks() -> None:
    """Hopeful, what left whole is what the next refill gets: refills and blocks do not fill up together."""
    stream: Events = [
        event for _ in range(40) for event in (("alloc", 512, True), ("free", 0, False), ("shrink", 512, False))
    ]
    flat = Flat.of(stream)
    *events, first = flat.columns()
    run = run_cache(*events, first, np.array(flat.orders, np.uint8), flat.host(None), CacheRules(hopeful=True))
    assert (len(run.refill_event), run.n_blocks, len(run.release_event)) == (40, 1, 40)
