"""The analyzer's benchmark: traces made larger are valid traces, and what DuckDB counts in them is what we count."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyze.pages.events import page_events
from analyze.reconstruct import rebuild
from analyze.verify import verify
from collect.trace import open_trace
from tests.bench.answer import TASKS
from tests.bench.scaled_trace import many_changes, many_pages, wide_host

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three repetitions of the sample's 12,482 page events, and a half."""
    return many_pages(SAMPLE, SAMPLE, tmp_path_factory.mktemp("bench") / "pages", 43_687)


def test_page_events_repeat_elsewhere_and_later(pages: Path) -> None:
    found, once = page_events(open_trace(pages)), page_events(open_trace(SAMPLE))
    assert found.n_events == 43_687
    assert found.outside == found.backwards == 0
    assert found.contradictions == pytest.approx(3.5 * once.contradictions, abs=once.contradictions)


def test_every_event_lies_behind_the_memory_of_the_map(pages: Path) -> None:
    trace, sample = open_trace(pages), open_trace(SAMPLE)
    assert trace.table("pages")["pfn"].to_numpy().min() >= sample.manifest["memory"]["max_pfn"]
    assert verify(trace).exact, "the map itself is the sample's"


@pytest.mark.parametrize("rival", ["duckdb", "polars"])
def test_rivals_count_what_we_count(pages: Path, rival: str) -> None:
    pytest.importorskip(rival)
    assert TASKS[f"{rival}_groups"](pages)["events"] == 43_687


def test_rivals_find_the_same_lifetimes_of_single_pages(pages: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("polars")
    assert TASKS["duckdb_lifetimes"](pages) == TASKS["polars_lifetimes"](pages)


def test_changes_repeat_later(tmp_path: Path) -> None:
    once = len(rebuild(open_trace(SAMPLE)).changes)
    found = rebuild(open_trace(many_changes(SAMPLE, tmp_path / "changes", once * 2)))
    assert len(found.changes) == once * 2


def test_a_wider_host_is_as_exact_as_the_sample(tmp_path: Path) -> None:
    trace = open_trace(wide_host(SAMPLE, tmp_path / "wide", 64 << 30, 0.1))
    found = verify(trace)
    assert found.exact
    assert found.difference is not None
    behind = (64 << 30 >> 12) - -(-open_trace(SAMPLE).manifest["memory"]["max_pfn"] // (1 << 18)) * (1 << 18)
    assert found.difference.pages == verify(open_trace(SAMPLE)).difference.pages + behind  # type: ignore[union-attr]
