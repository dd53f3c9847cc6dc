"""The compiled rules do what the page-by-page model does, whatever the memory and the calls look like."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyze.directmap import FRAME, GIGA, DirectMap
from analyze.entries import collapse_frame, collapse_giga
from collect.schema import Level, Pte
from tests.machine import PageModel

N_GIGAS = 2
N_PAGES = N_GIGAS * GIGA
KERNEL_4K = 1 << 11
USUAL = int(Pte.P | Pte.RW | Pte.A | Pte.D | Pte.G | Pte.NX)

bits = st.sampled_from([int(bit) for bit in (Pte.P, Pte.RW, Pte.PWT, Pte.PCD, Pte.PAT, Pte.D, Pte.G, Pte.NX)])
masks = st.lists(bits, max_size=3).map(lambda some: sum(set(some)))
attrs = st.sampled_from(
    [USUAL, USUAL & ~int(Pte.RW), USUAL & ~int(Pte.P | Pte.G | Pte.RW), USUAL & ~int(Pte.G), USUAL & ~int(Pte.P)]
)
near = st.sampled_from([0, 0, 0, 1, -1, 7, 511, 513])
edges = st.one_of(
    st.integers(0, N_GIGAS).map(lambda giga: giga * GIGA),
    st.integers(0, N_PAGES // FRAME).map(lambda frame: frame * FRAME),
)
pages = st.builds(lambda edge, off: min(max(edge + off, 0), N_PAGES - 1), edges, near)
lengths = st.sampled_from([1, 1, 2, 7, 511, 512, 513, 1024, 5000, GIGA, GIGA + 512, 2 * GIGA])


@dataclass(frozen=True)
class Call:
    """One call of the choke point."""

    pfn: int
    n_pages: int
    mask_set: int
    mask_clr: int
    force_split: bool
    has_pgd: bool
    done_part: float


calls = st.builds(
    Call,
    pages,
    lengths,
    masks,
    masks,
    st.sampled_from([False] * 7 + [True]),
    st.sampled_from([False] * 7 + [True]),
    st.sampled_from([1.0] * 7 + [0.5]),
)


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[int, int, int, int]]:
    """Memory as snapshot rows: 1G leaves, tables of 2M leaves, 4K pages and holes."""
    rows: list[tuple[int, int, int, int]] = []
    for giga in range(N_GIGAS):
        first = giga * GIGA
        shape = draw(st.sampled_from(["leaf", "table", "table", "hole"]))
        if shape == "leaf":
            rows.append((first, 3, 1, draw(attrs)))
        elif shape == "table":
            cuts = sorted(draw(st.sets(st.integers(0, 512), max_size=5)) | {0, 512})
            for begin, end in pairwise(cuts):
                what = draw(st.sampled_from(["large", "large", "small", "hole"]))
                if what == "large":
                    rows.append((first + begin * FRAME, 2, end - begin, draw(attrs)))
                elif what == "small":
                    small = first + begin * FRAME + draw(st.sampled_from([0, 3]))
                    rows.append((small, 1, min(700, (end - begin) * FRAME - 3), draw(attrs)))
    return rows


def build(rows: list[tuple[int, int, int, int]], rodata: tuple[int, int]) -> tuple[DirectMap, PageModel]:
    compiled, model = DirectMap(N_PAGES, rodata=rodata), PageModel(N_PAGES, rodata)
    if rows:
        compiled.load(*zip(*rows, strict=True))
    for pfn, level, n_leaves, word in rows:
        model.fill(pfn, n_leaves, level, word)
    return compiled, model


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=runs(), edge=edges, size=st.sampled_from([0, 5, 512, 2283]), some=st.lists(calls, min_size=1, max_size=6))
def test_rules_do_what_the_page_by_page_model_does(
    rows: list[tuple[int, int, int, int]], edge: int, size: int, some: list[Call]
) -> None:
    rodata = (min(edge, N_PAGES - size), min(edge + size, N_PAGES))
    compiled, model = build(rows, rodata)
    for call in some:
        n = min(call.n_pages, N_PAGES - call.pfn)
        done = max(1, round(n * call.done_part))
        rest = {"n_done": done, "force_split": call.force_split, "has_pgd": call.has_pgd}
        if call.has_pgd or call.force_split:  # the model walks these page by page: keep them short
            n = min(n, 3000)
            rest["n_done"] = min(done, n)
        got = compiled.change(call.pfn, n, mask_set=call.mask_set, mask_clr=call.mask_clr, **rest)
        assert got == model.change(call.pfn, n, call.mask_set, call.mask_clr, **rest)
    every = np.arange(N_PAGES)
    np.testing.assert_array_equal(compiled.level_of(every), np.frombuffer(model.level, np.uint8))
    np.testing.assert_array_equal(compiled.attrs_of(every), np.array(model.attrs, np.uint64))
    for level, n_pages in ((Level.K4, 1), (Level.M2, FRAME), (Level.G1, GIGA)):
        assert compiled.counts()[level] == model.level.count(level) // n_pages


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=runs(), call=calls, at=pages, tables=st.integers(0, 2), rodata=st.booleans())
def test_what_a_call_that_failed_has_split_stays_split(
    rows: list[tuple[int, int, int, int]], call: Call, at: int, tables: int, rodata: bool
) -> None:
    """Of the tables that the page in work needed there were `tables` to be had."""
    compiled, model = build(rows, (max(0, at - 3), min(at + 600, N_PAGES)) if rodata else (0, 0))
    n = min(call.n_pages, N_PAGES - call.pfn)
    done = min(n - 1, at % 1000)
    how = {"mask_set": call.mask_set, "mask_clr": call.mask_clr, "n_done": done}
    assert compiled.change(call.pfn, n, **how) == model.change(call.pfn, n, call.mask_set, call.mask_clr, n_done=done)
    for level in (3, 2)[:tables]:
        assert compiled.split(call.pfn + done, level) == model.split(call.pfn + done, level)
    every = np.arange(N_PAGES)
    np.testing.assert_array_equal(compiled.level_of(every), np.frombuffer(model.level, np.uint8))
    np.testing.assert_array_equal(compiled.attrs_of(every), np.array(model.attrs, np.uint64))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=runs(), some=st.lists(calls, max_size=3))
def test_a_map_written_as_runs_and_loaded_again_is_the_same(
    rows: list[tuple[int, int, int, int]], some: list[Call]
) -> None:
    compiled, model = build(rows, (0, 0))
    for call in some:
        compiled.change(call.pfn, min(call.n_pages, N_PAGES - call.pfn), mask_clr=call.mask_clr)
        model.change(call.pfn, min(call.n_pages, N_PAGES - call.pfn), 0, call.mask_clr)
    written = compiled.runs()
    assert list(zip(*(column.tolist() for column in written), strict=True)) == list(model.runs(0, N_PAGES))
    again = DirectMap(N_PAGES)
    again.load(*written)
    for mine, theirs in zip(again.runs(), written, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert again.counts() == compiled.counts()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=runs(), before=st.lists(calls, max_size=2), at=pages, bit=bits, on_purpose=st.booleans())
def test_entries_are_put_back_only_where_they_are_alike(
    rows: list[tuple[int, int, int, int]], before: list[Call], at: int, bit: int, on_purpose: bool
) -> None:
    compiled, model = build(rows, (0, 0))
    first = at // FRAME * FRAME
    soft = KERNEL_4K if on_purpose else 0
    steps = [(call.pfn, min(call.n_pages, N_PAGES - call.pfn), call.mask_set, call.mask_clr) for call in before]
    for pfn, n, mask_set, mask_clr in [*steps, (first, FRAME, soft, 0), (first + 3, 1, bit, 0), (first + 3, 1, 0, bit)]:
        compiled.change(pfn, n, mask_set=mask_set, mask_clr=mask_clr)
        model.change(pfn, n, mask_set, mask_clr)
    assert collapse_frame(compiled.entries, at // FRAME) == model.collapse(at, Level.K4)
    assert collapse_giga(compiled.entries, at // GIGA) == model.collapse(at, Level.M2)
    every = np.arange(N_PAGES)
    np.testing.assert_array_equal(compiled.level_of(every), np.frombuffer(model.level, np.uint8))
    np.testing.assert_array_equal(compiled.attrs_of(every), np.array(model.attrs, np.uint64))
    for level, n_pages in ((Level.K4, 1), (Level.M2, FRAME), (Level.G1, GIGA)):
        assert compiled.counts()[level] == model.level.count(level) // n_pages
