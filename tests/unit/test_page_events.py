"""Page events: golden numbers of real recordings, sampling, doubts, hostile rows, and what the command prints."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyze.__main__ import main
from analyze.counter_series import CounterSeries
from analyze.pages.events import page_events
from analyze.pages.free_blocks import free_blocks
from analyze.pages.names import gfp_names, migratetype_name
from collect.errors import TraceError
from collect.page_ring import is_sampled
from collect.schema import TABLES, PageEvent
from collect.trace import open_trace
from tests.machine.rewrite import rewrite, with_manifest

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"


def pages(rows: list[dict[str, int]]) -> pa.Table:
    """Rows of the table pages; every cell that is not given is 0."""
    empty = dict.fromkeys(TABLES["pages"].names, 0)
    return pa.Table.from_pylist([empty | row for row in rows], schema=TABLES["pages"])


def trace_of(tmp_path: Path, rows: list[dict[str, int]], **sampling: object) -> Path:
    """The sample trace with these page events in place of its own, recorded with --pages all."""
    rewrite(SAMPLE, tmp_path / "trace", "pages", pages(rows))
    return with_manifest(
        tmp_path / "trace", tmp_path / "trace", sampling={"pages": "all", "page_sample": 1, **sampling}
    )


def events(start_ns: int, *what: tuple[int, PageEvent, int, int]) -> list[dict[str, int]]:
    """Rows from (time after the start, event, pfn, order)."""
    return [{"ts_ns": start_ns + ts, "event": int(e), "pfn": pfn, "order": order} for ts, e, pfn, order in what]


@pytest.fixture(scope="module")
def start_ns() -> int:
    return int(open_trace(SAMPLE).manifest["ts_start_ns"])


def test_the_numbers_of_a_real_recording() -> None:
    """Golden: 6.1-churn, pages in scope. The load's 1,010 secret pages are all freed."""
    found = page_events(open_trace(SAMPLE))
    assert found.n_events == 12_482
    assert dict(found.by("order")[["order", "allocations"]].itertuples(index=False)) == {
        0: 6276, 1: 782, 2: 22, 3: 6, 4: 4, 7: 1,
    }  # fmt: skip
    scopes = found.by("scope").set_index("scope")
    assert {found.name("scope", int(scope)): int(n) for scope, n in scopes["pages"].items()} == {
        "bpf_pack": 3072, "module": 2594, "module_alloc": 1347, "secret_page": 1010, "page table of a split": 145,
    }  # fmt: skip
    assert int(scopes.loc[3, "freed_pages"]) == 1010
    assert found.frees_unknown == 4
    assert not found.whole


def test_a_page_lives_from_its_allocation_to_its_free(tmp_path: Path, start_ns: int) -> None:
    rows = events(start_ns, (0, PageEvent.ALLOC, 512, 0), (5_000, PageEvent.FREE, 512, 0))
    found = page_events(open_trace(trace_of(tmp_path, rows)))
    lifetimes = found.lifetimes()
    assert lifetimes[lifetimes["freed"] > 0][["below_ns", "freed"]].to_numpy().tolist() == [[10_000, 1]]


def test_a_huge_page_that_is_freed_in_parts_lived_in_parts(tmp_path: Path, start_ns: int) -> None:
    parts = [(1_000 * (i + 1), PageEvent.FREE, 1024 + i, 0) for i in range(511)]
    found = page_events(open_trace(trace_of(tmp_path, events(start_ns, (0, PageEvent.ALLOC, 1024, 9), *parts))))
    row = found.classes.iloc[0]
    assert (row["pages"], row["freed_pages"], row["live_pages"], found.contradictions) == (512, 511, 1, 0)


def test_what_cannot_follow_is_counted_and_put_in_doubt(tmp_path: Path, start_ns: int) -> None:
    rows = events(
        start_ns,
        (0, PageEvent.FREE, 700, 0),
        (1, PageEvent.FREE, 700, 0),
        (2, PageEvent.ALLOC, 700, 2),
        (3, PageEvent.ALLOC, 700, 0),
    )
    found = page_events(open_trace(trace_of(tmp_path, rows)))
    assert found.frees_unknown == 1
    assert found.orders["frees_again"].tolist()[0] == 1
    assert found.orders["allocated_again"].tolist()[0] == 1
    assert found.contradictions == 2
    assert any("2 events contradict" in doubt for doubt in found.doubts())


def test_the_scatter_of_unmovable_pages_is_by_2m_frame(tmp_path: Path, start_ns: int) -> None:
    rows = events(start_ns, *((i, PageEvent.ALLOC, frame * 512, 0) for i, frame in enumerate((1, 2, 3))))
    rows += events(start_ns, (9, PageEvent.ALLOC, 4 * 512, 5))
    rows[1]["migratetype"] = 1
    found = page_events(open_trace(trace_of(tmp_path, rows)))
    assert found.scattered("unmovable").to_numpy().tolist() == [
        [1, 2, 2],
        [8, 0, 0],
        [64, 1, 32],
        [256, 0, 0],
        [512, 0, 0],
    ]


@pytest.mark.parametrize(("column", "value"), [("order", 11), ("event", 5)])
def test_a_code_that_no_format_knows_is_refused(tmp_path: Path, start_ns: int, column: str, value: int) -> None:
    rows = events(start_ns, (0, PageEvent.ALLOC, 5, 0), (1, PageEvent.ALLOC, 6, 0))
    rows[1][column] = value
    with pytest.raises(TraceError, match="table pages: row 1 has an event or order that this format does not know"):
        page_events(open_trace(trace_of(tmp_path, rows)))


def test_of_a_sampled_recording_the_blocks_of_the_last_step_count(tmp_path: Path, start_ns: int) -> None:
    """One block in 4, later in 16: what the second left out is left out from the beginning, and the rest scaled by 16."""
    pfns = np.arange(0, 512 * 2048, 512, dtype=np.uint64)
    first, last = pfns[is_sampled(pfns, 4)], pfns[is_sampled(pfns, 16)]
    rows = events(start_ns, *((i, PageEvent.ALLOC, int(pfn), 0) for i, pfn in enumerate(first)))
    steps = [{"ts_ns": start_ns + 10**9, "page_sample": 16, "percent": 2.0}]
    found = page_events(open_trace(trace_of(tmp_path, rows, page_sample=4, steps=steps)))
    assert found.sample == 16
    assert int(found.classes["allocations"].sum()) == len(last) == 128
    estimate, low, high = found.scaled()
    assert estimate == 2048
    assert low <= 2048 <= high
    assert high - estimate == round(1.96 * (16 * 15 * 128) ** 0.5)


def test_pages_of_regions_are_never_sampled(tmp_path: Path, start_ns: int) -> None:
    rows = events(start_ns, *((i, PageEvent.ALLOC, 512 * i, 0) for i in range(64)))
    for row in rows:
        row |= {"scope": 2, "region_id": 1}
    found = page_events(open_trace(trace_of(tmp_path, rows, page_sample=64)))
    assert int(found.classes["allocations"].sum()) == 64
    assert found.scaled() == (0, 0, 0)


def test_events_that_were_switched_off_are_known_up_to_then(tmp_path: Path, start_ns: int) -> None:
    rows = events(start_ns, (0, PageEvent.ALLOC, 0, 0))
    found = page_events(open_trace(trace_of(tmp_path, rows, steps=[{"ts_ns": start_ns + 500, "page_sample": 0}])))
    assert found.stopped_ns == start_ns + 500
    assert found.seconds == 500e-9
    assert any("off" in doubt for doubt in found.doubts())


def test_lost_page_events_put_lifetimes_in_doubt(tmp_path: Path) -> None:
    trace = with_manifest(SAMPLE, tmp_path / "lost", losses={"pages_ring_full": 12})
    assert any(doubt.startswith("12 page events were lost") for doubt in page_events(open_trace(trace)).doubts())


@pytest.mark.parametrize(
    ("gfp", "names"),
    [
        (0xCC0, "GFP_KERNEL"),
        (0xDC0, "GFP_KERNEL|__GFP_ZERO"),
        (0x400DC0, "GFP_KERNEL_ACCOUNT|__GFP_ZERO"),
        (0x140DCA, "GFP_HIGHUSER_MOVABLE|__GFP_ZERO|__GFP_COMP"),
        (0xA20, "GFP_ATOMIC"),
        (0x820, "GFP_ATOMIC"),
        (0x2CC2, "GFP_KERNEL|__GFP_HIGHMEM|__GFP_NOWARN"),
        (0, "none"),
        (1 << 31, "0x80000000"),
    ],
)
def test_gfp_flags_have_the_kernels_names(gfp: int, names: str) -> None:
    """As the kernel's own tracepoint prints them (kmem:mm_page_alloc)."""
    assert gfp_names(gfp) == names


def test_what_migratetype_4_is_depends_on_the_kernels_configuration() -> None:
    assert [migratetype_name(4, config) for config in ({}, {"CONFIG_CMA": "y"})] == ["CMA or ISOLATE", "CMA"]
    assert migratetype_name(5, {"CONFIG_CMA": "y"}) == "ISOLATE"


def test_free_blocks_are_the_counters_of_buddyinfo() -> None:
    zones = free_blocks(CounterSeries(open_trace(SAMPLE)))
    assert [(zone.node, zone.zone) for zone in zones] == [(0, "DMA"), (0, "DMA32"), (0, "Normal")]
    rows = open_trace(SAMPLE).table("counters").to_pandas()
    mine = rows[rows["counter"] == "buddyinfo/0/Normal/3"].sort_values("ts_ns")
    assert zones[2].blocks[:, 3].tolist() == mine["value"].tolist()
    last = zones[2].blocks[-1]
    small = sum(int(n) << order for order, n in enumerate(last[:9]))
    assert zones[2].unusable(9)[-1] == pytest.approx(small / sum(int(n) << order for order, n in enumerate(last)))


def test_batches_are_the_table_a_row_group_after_the_other(tmp_path: Path) -> None:
    trace = open_trace(SAMPLE)
    whole = trace.table("pages", ["ts_ns", "pfn"])
    assert pa.concat_tables(trace.batches("pages", ["ts_ns", "pfn"])).equals(whole)


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(SAMPLE, tmp_path / "copy"))
    file = copy / open_trace(copy).manifest["tables"]["pages"][0]["file"]
    column = pq.ParquetFile(file).metadata.row_group(0).column(0)
    data = bytearray(file.read_bytes())
    at = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size - 3
    data[at] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(TraceError, match="damaged"):
        page_events(open_trace(copy))


def test_rows_in_one_huge_group_are_read_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collect.trace.MAX_GROUP_ROWS", 1000)
    trace = open_trace(SAMPLE)
    parts = list(trace.batches("pages", ["ts_ns"]))
    assert max(part.num_rows for part in parts) <= 1000
    assert pa.concat_tables(parts).equals(trace.table("pages", ["ts_ns"]))


def test_the_command_prints_ascii_under_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pages", str(SAMPLE)]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert max(map(len, out.splitlines())) < 80
    assert "emulated CPUs: no rates, no lifetimes" in out
    assert "12,482 page events: 7,091 allocations, 5,391 frees" in out


def test_json_is_strict_and_has_no_times_of_an_emulated_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pages", "--json", str(SAMPLE)]) == 0

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["lifetimes"] is None
    assert found["allocations_per_second"] is None
    assert found["consistency"]["frees_of_unknown_pages"] == 4
    assert {row["name"] for row in found["migratetype"]} == {"UNMOVABLE", "RECLAIMABLE"}


def test_pages_of_a_line_are_freed_replaced_or_live_and_flags_that_were_not_recorded_are_not_called_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pages", str(SAMPLE)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^  not recorded +4,384 +4,384 +4,355 +0 +29$", text, re.MULTILINE)
    assert "flags and migratetype of 4,384 allocations were not recorded" in text
    head = next(line for line in text.splitlines() if line.startswith("  order "))
    assert head.split() == ["order", "allocations", "pages", "freed", "replaced", "live"]
    orders = re.findall(r"^  \d+ +[\d,]+ +([\d,]+) +([\d,]+) +([\d,]+) +([\d,]+)$", text, re.MULTILINE)
    assert len(orders) == 6
    for line in orders:
        pages, *parts = (int(cell.replace(",", "")) for cell in line)
        assert pages == sum(parts)
