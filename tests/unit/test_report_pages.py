"""Page events in the report: what was recorded, what is left of it, and nothing about time from an emulated CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyze.pages.events import page_events
from analyze.report.pages import page_sentences, page_tables
from analyze.words.numbers import as_ascii
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import with_manifest

SAMPLES = Path(__file__).parents[2] / "sample_traces"


@pytest.mark.parametrize("sample", ["5.10-bpf", "6.1-churn", "7.2-churn"])
def test_sentences_and_tables_hold_the_trace_s_numbers(sample: str) -> None:
    trace = open_trace(SAMPLES / sample)
    events = trace.table("pages").to_pandas()
    found = page_events(trace)
    allocations, frees = int(events["event"].isin([0, 2]).sum()), int((events["event"] == 1).sum())
    first = as_ascii(page_sentences(found)[0])
    assert first.startswith(f"{len(events):,} page events of pages of regions and of splits alone")
    assert f"{allocations:,} allocations, {frees:,} frees" in first
    by_order = {row[0]: as_ascii(row[1]) for row in page_tables(found)[0].rows}
    counts = events[events["event"].isin([0, 2])]["order"].value_counts()
    assert by_order == {str(order): f"{n:,}" for order, n in counts.items()}


def test_times_of_emulated_cpus_are_left_out(tmp_path: Path) -> None:
    source = write_trace(tmp_path / "a", 8, scale=0.05)
    emulated = page_events(open_trace(source))
    real = page_events(open_trace(with_manifest(source, tmp_path / "b", cpu={"emulated": False})))
    assert "emulated" in " ".join(page_sentences(emulated)) and "emulated" not in " ".join(page_sentences(real))
    heads = [[table.head[0] for table in page_tables(found)] for found in (emulated, real)]
    assert "age of pages, below" not in heads[0] and heads[1] == [*heads[0], "age of pages, below"]


def test_doubts_are_said_and_where_all_was_recorded_so_is_what_cannot_be_moved(tmp_path: Path) -> None:
    source = write_trace(tmp_path / "a", 8, scale=0.05)
    ill = with_manifest(source, tmp_path / "b", sampling={"pages": "all"}, losses={"pages_ring_full": 3})
    said = " ".join(page_sentences(page_events(open_trace(ill))))
    assert "3 page events were lost: counts are lower bounds" in said
    assert "cannot be moved" in said and "of all pages" in said
    sampled = with_manifest(source, tmp_path / "c", sampling={"pages": "all", "page_sample": 4})
    assert "One block of 512 pages in 4 was recorded" in " ".join(page_sentences(page_events(open_trace(sampled))))
