"""The compiled cache and the compiled packs against plain Python written for reading, and conservation of pages."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.prog_packs import run_packs
from replay.unmapped_cache import run_cache


@dataclass
class PlainCache:
    """The RFC's lists with Python's: the end of a list is its head."""

    available: list[int] | None  # free blocks by order, or unlimited
    lists: list[list[int]] = field(default_factory=lambda: [[] for _ in range(11)])
    refills: list[tuple[int, int]] = field(default_factory=list)
    taken: int = 0

    def take(self, order: int) -> int | None:
        for k in range(order, 11):
            if self.lists[k]:
                page = self.lists[k].pop()
                for half in range(k - 1, order - 1, -1):
                    self.lists[half].append(page + (1 << half))
                return page
        return None

    def alloc(self, order: int) -> int | None:
        page = self.take(order)
        if page is not None:
            return page
        for k in range(9, order - 1, -1):
            if (
                self.available is None
                or sum(n << j for j, n in enumerate(self.available) if j >= k) - self.taken >= 1 << k
            ):
                self.taken += 1 << k
                base = 512 * len(self.refills)
                self.refills.append((k, order))
                self.insert(base, k)
                return self.take(order)
        return None

    def insert(self, page: int, order: int) -> None:
        while order < 9 and (page ^ (1 << order)) in self.lists[order]:
            self.lists[order].remove(page ^ (1 << order))
            page &= ~(1 << order)
            order += 1
        self.lists[order].append(page)

    def free_pages(self) -> list[int]:
        return sorted(p + i for order, pages in enumerate(self.lists) for p in pages for i in range(1 << order))


sizes = st.one_of(st.integers(1, 20), st.sampled_from([511, 512, 513, 700, 1024]))
streams = st.lists(
    st.one_of(st.tuples(st.just("alloc"), sizes, st.booleans()), st.tuples(st.just("free"), st.integers(0, 1 << 30))),
    max_size=60,
)
counts = st.one_of(st.none(), st.lists(st.integers(0, 3), min_size=11, max_size=11))


def flat(stream: list[tuple[object, ...]]) -> tuple[list[tuple[int, bool]], list[int], list[int]]:
    """Events (request, is_free), pages and orders of requests, from a stream of which frees pick a living request."""
    events: list[tuple[int, bool]] = []
    pages: list[int] = []
    orders: list[int] = []
    living: list[int] = []
    for op in stream:
        if op[0] == "alloc":
            pages.append(int(op[1]))  # type: ignore[call-overload]
            orders.append(9 if op[2] else 0)
            living.append(len(pages) - 1)
            events.append((len(pages) - 1, False))
        elif living:
            events.append((living.pop(int(op[1]) % len(living)), True))  # type: ignore[call-overload]
    return events, pages, orders


@settings(max_examples=150, deadline=None)
@given(streams, counts)
def test_cache_does_what_plain_python_does_and_loses_no_page(
    stream: list[tuple[object, ...]], available: list[int] | None
) -> None:
    events, pages, orders = flat(stream)
    first = np.concatenate(([0], np.cumsum(pages))).astype(np.int64)
    n_counts = 0 if available is None else 1
    run = run_cache(
        np.array([request for request, _ in events], np.int64),
        np.array([is_free for _, is_free in events], np.bool_),
        np.arange(len(events)),
        first,
        np.array(orders, np.uint8),
        np.zeros(n_counts, np.int64),
        np.array(available or [0] * 11, np.int64).reshape(1, 11)[:n_counts],
    )

    plain = PlainCache(available)
    held: dict[int, list[int]] = {}
    for at, (request, is_free) in enumerate(events):
        if is_free:
            for page in held.pop(request):
                plain.insert(page, 0)
        else:
            got: list[int] = []
            while len(got) < pages[request]:
                order = 9 if orders[request] and pages[request] - len(got) >= 512 else 0
                page = plain.alloc(order)
                if page is None:
                    break
                got += range(page, page + (1 << order))
            if len(got) < pages[request]:
                for page in got:
                    plain.insert(page, 0)
                got = []
            held[request] = got
            dest = run.dest[first[request] : first[request + 1]].tolist()
            assert dest == (got or [-1] * pages[request])
        assert run.idle[at] == len(plain.free_pages())

    assert list(zip(run.refill_order, run.refill_request_order, strict=True)) == plain.refills
    assert sorted(run.free_pages.tolist()) == plain.free_pages()
    owned = [512 * block + i for block, (order, _) in enumerate(plain.refills) for i in range(1 << order)]
    in_use = [page for got in held.values() for page in got]
    assert sorted(in_use + run.free_pages.tolist()) == owned  # each page is cached or in use, once


images = st.lists(
    st.one_of(
        st.tuples(st.just("alloc"), st.integers(1, 12), st.just(0)), st.tuples(st.just("free"), st.integers(0, 99))
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(images, st.booleans())
def test_packs_do_what_plain_python_does(stream: list[tuple[object, ...]], old_pack: bool) -> None:
    events, chunks, _ = flat(stream)
    run = run_packs(
        np.array([image for image, _ in events], np.int64),
        np.array([is_free for _, is_free in events], np.bool_),
        np.array(chunks, np.int64),
        10,
        old_pack=old_pack,
    )
    packs: list[list[int | None]] = [[None] * 10] * old_pack
    gone: set[int] = set()
    for at, (image, is_free) in enumerate(events):
        n = chunks[image]
        if is_free and n <= 10:
            pack = packs[run.pack[image]]
            assert pack.count(image) == n
            packs[run.pack[image]] = pack = [None if owner == image else owner for owner in pack]
            if pack == [None] * 10 and not (old_pack and run.pack[image] == 0):
                gone.add(int(run.pack[image]))
        elif not is_free and n <= 10:
            fits = [
                (p, i)
                for p, pack in enumerate(packs)
                if p not in gone
                for i in range(10 - n + 1)
                if pack[i : i + n] == [None] * n
            ]
            if not fits:
                packs.append([None] * 10)
                fits = [(len(packs) - 1, 0)]
            p, i = fits[0]
            assert (run.pack[image], run.start[image]) == (p, i)
            packs[p][i : i + n] = [image] * n
        elif not is_free:
            assert run.pack[image] == -1
        live = [pack for p, pack in enumerate(packs) if p not in gone]
        assert run.n_live[at] == len(live)
        assert run.used_chunks[at] == sum(owner is not None for pack in live for owner in pack)
    assert len(run.made_event) == len(packs)
    assert {p for p, event in enumerate(run.gone_event) if event >= 0} == gone
