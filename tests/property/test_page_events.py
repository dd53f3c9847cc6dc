"""Page events against their plain twin: whatever the rows are, both find the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyze.pages.events import PageEvents, page_events
from analyze.pages.names import gfp_names
from collect.schema import NO_PFN, TABLES, PageEvent
from collect.trace import Trace, open_trace
from tests.machine.page_model import PageModel

N_PAGES = 4096
START, END = 1_000, 5_000_000_000
SAMPLES = sorted(path for path in Path(__file__).parents[2].joinpath("sample_traces").glob("*") if path.is_dir())

rows = st.lists(
    st.fixed_dictionaries(
        {
            "ts_ns": st.integers(0, END + 100) | st.sampled_from([START, END, START + 999]),
            "event": st.sampled_from([int(event) for event in PageEvent]) | st.sampled_from([0, 1]),
            "pfn": st.integers(0, 40) | st.integers(500, 530) | st.integers(0, N_PAGES + 64) | st.just(NO_PFN),
            "order": st.integers(0, 3) | st.integers(0, 10),
            "gfp": st.sampled_from([0xCC0, 0x140DCA, 0, 0xFFFF_FFFF]),
            "migratetype": st.integers(0, 5),
            "scope": st.sampled_from([0, 0, 3, 16, 255]),
        }
    ),
    max_size=120,
)


class Rows(Trace):
    """A trace of nothing but page events, in batches of seven rows."""

    def __init__(self, table: pa.Table, **sampling: Any) -> None:
        self.path = Path("rows")
        self.given = table
        self.manifest = {
            "sampling": {"pages": "all", **sampling},
            "memory": {"max_pfn": N_PAGES},
            "ts_start_ns": START,
            "ts_end_ns": END,
            "kernel": {"config": {}},
            "losses": {},
            "cpu": {"emulated": False},
            "probes": {"missing": []},
        }

    def batches(self, name: str, columns: Any, n_threads: int = 2) -> Any:
        assert name == "pages"
        for first in range(0, self.given.num_rows, 7):
            yield self.given.slice(first, 7).select(list(columns))


def table_of(events: list[dict[str, int]]) -> pa.Table:
    empty = dict.fromkeys(TABLES["pages"].names, 0)
    return pa.Table.from_pylist([empty | event for event in events], schema=TABLES["pages"])


def holds_as(found: PageEvents, model: PageModel) -> None:
    """Every number of `found` is the twin's."""
    names = ("event", "order", "gfp", "migratetype", "scope")
    kinds = [tuple(row) for row in found.classes[list(names)].to_numpy().tolist()]
    assert len(set(kinds)) == len(kinds)
    live = Counter(model.live().values())
    for column, expected in (
        ("allocations", model.allocations),
        ("pages", model.pages),
        ("freed_pages", model.freed),
        ("replaced_pages", model.replaced),
        ("live_pages", live),
    ):
        assert {k: n for k, n in zip(kinds, found.classes[column].tolist(), strict=True) if n} == dict(expected), column
    for cells, expected in ((found.lives, model.lives), (found.ages, model.ages())):
        at = {(kinds[i], int(d)): int(cells[i, d]) for i, d in zip(*np.nonzero(cells), strict=True)}
        assert at == dict(expected)
    for column, by_order in (
        ("frees_unknown", model.unknown),
        ("frees_again", model.freed_again),
        ("allocated_again", model.allocated_again),
        ("splits", model.splits),
    ):
        assert {o: n for o, n in enumerate(found.orders[column].tolist()) if n} == dict(by_order), column
    for column in ("allocations", "frees"):
        counts = {(i, column): n for i, n in enumerate(found.intervals[column].tolist()) if n}
        assert counts == {key: n for key, n in model.bins.items() if key[1] == column}
    assert (found.outside, found.failed) == (model.outside, model.failed)
    frames = found.frames.set_index("frame")
    for column, wanted in (
        ("live", lambda kind: True),
        ("unmovable", lambda kind: kind[3] == 0 and kind[0] != PageEvent.ALLOC_CONTIG),
        ("special", lambda kind: kind[4] != 0),
    ):
        expected = Counter(page // 512 for page, kind in model.live().items() if wanted(kind))
        assert {f: n for f, n in frames[column].items() if n} == dict(expected), column


@settings(max_examples=150, deadline=None)
@given(rows)
def test_the_pass_finds_what_the_plain_twin_finds(events: list[dict[str, int]]) -> None:
    model = PageModel(N_PAGES, START, END)
    model.take(events)
    holds_as(page_events(Rows(table_of(events))), model)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)
def test_the_plain_twin_finds_the_same_in_a_real_recording(sample: Path) -> None:
    trace = open_trace(sample)
    manifest = trace.manifest
    model = PageModel(-(-manifest["memory"]["max_pfn"] // 512) * 512, manifest["ts_start_ns"], manifest["ts_end_ns"])
    model.take(trace.table("pages").to_pylist())
    found = page_events(trace)
    assert found.n_events == trace.n_rows("pages") > 1000
    holds_as(found, model)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 0xFFFF_FFFF))
def test_the_names_of_flags_leave_no_bit_out(gfp: int) -> None:
    assert gfp_names(gfp) != "none" or gfp == 0
    assert gfp_names(gfp).isascii()
