"""Parts of a journal become segments: page events from up to two parts, in one order, whichever comes first."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collect import segments
from collect.journal import TraceWriter
from collect.page_events import PACKED, PACKED_TABLE, pack
from collect.records import PAGE_EVENT
from collect.recovery import recover
from collect.segments import JOURNAL_TABLES, read_cut_stream, segment_of, table_of
from collect.trace import Trace, open_trace
from tests.machine.writing import packed, rows
from tests.unit.test_trace_format import manifest

NUMBER = "00007"


def part(journal: Path, name: str, *batches: pa.RecordBatch, cut: int = 0) -> Path:
    """One part of a journal, without its last `cut` bytes."""
    path = journal / f"{name}-{NUMBER}.arrows"
    with path.open("wb") as file, pa.ipc.new_stream(file, JOURNAL_TABLES[name]) as stream:
        for batch in batches:
            stream.write_batch(batch)
    if cut:
        os.truncate(path, path.stat().st_size - cut)
    return path


def events(*times: int) -> pa.RecordBatch:
    batch = np.zeros(len(times), PAGE_EVENT)
    batch["ts"], batch["what"] = times, np.array(times, np.uint64) + np.uint64(100)
    return pack(batch)


def plain(*times: int) -> pa.RecordBatch:
    table = pa.concat_tables([rows("pages", time - 1, 1) for time in times]).combine_chunks()
    return table.to_batches()[0]


def times(directory: Path) -> list[int]:
    """Of the one segment that is there."""
    (path,) = directory.glob("*.parquet")
    assert path.name == f"pages-{NUMBER}.parquet"
    return pq.read_table(path)["ts_ns"].to_pylist()  # type: ignore[no-any-return]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    return tmp_path / "journal"


@pytest.mark.parametrize("first", ["pages", PACKED_TABLE])
def test_both_parts_become_one_segment_in_time_whichevers_turn_comes_first(journal: Path, first: str) -> None:
    parts = {
        PACKED_TABLE: part(journal, PACKED_TABLE, events(3, 9), events(1)),
        "pages": part(journal, "pages", plain(8, 2)),
    }
    order = [parts.pop(first), *parts.values()]
    entries = [segment_of(path, journal.parent) for path in order]
    (entry,) = [entry for entry in entries if entry]
    assert times(journal.parent) == [1, 2, 3, 8, 9]
    assert (entry["file"], entry["rows"]) == (f"pages-{NUMBER}.parquet", 5)
    assert list(journal.iterdir()) == []
    table = pq.read_table(journal.parent / entry["file"])
    assert table["pfn"].to_pylist() == [101, 0, 103, 0, 109], "each row is its own time's"


@pytest.mark.parametrize("name", ["pages", PACKED_TABLE])
def test_either_part_alone_is_a_segment(journal: Path, name: str) -> None:
    path = part(journal, name, events(3, 1) if name == PACKED_TABLE else plain(3, 1))
    assert table_of(path) == "pages"
    entry = segment_of(path, journal.parent)
    assert entry and times(journal.parent) == [1, 3]
    assert list(journal.iterdir()) == []


def test_groups_of_rows_are_in_one_order(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "GROUP_ROWS", 7)
    mixed = np.random.default_rng(1).permutation(100) + 1
    path = part(journal, PACKED_TABLE, events(*mixed[:60].tolist()), events(*mixed[60:80].tolist()))
    part(journal, "pages", plain(*mixed[80:].tolist()))
    segment_of(path, journal.parent)
    assert times(journal.parent) == list(range(1, 101))


def test_two_parts_without_a_whole_row_are_dropped_without_a_segment(journal: Path) -> None:
    path = part(journal, PACKED_TABLE, events(1, 2), cut=40)
    part(journal, "pages")
    assert segment_of(path, journal.parent) is None
    assert list(journal.parent.iterdir()) == [journal] and list(journal.iterdir()) == []


def test_a_cut_stream_reads_up_to_the_cut_wherever_it_is(journal: Path) -> None:
    whole = part(journal, PACKED_TABLE, events(1, 2), events(3), events(4, 5, 6))
    data = whole.read_bytes()
    seen = set()
    for end in range(len(data) + 1):
        with pa.BufferReader(data[:end]) as source:
            found = [time for batch in read_cut_stream(source, PACKED) for time in batch["ts"].to_pylist()]
        assert found in ([], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5, 6])
        seen.add(len(found))
    assert seen == {0, 2, 3, 6}


def test_cut_parts_become_one_segment_of_what_is_whole(journal: Path) -> None:
    path = part(journal, PACKED_TABLE, events(1, 5), events(3), cut=30)
    part(journal, "pages", plain(2), plain(4), cut=30)
    assert segment_of(path, journal.parent)
    assert times(journal.parent) == [1, 2, 5]


# --- a whole trace ---------------------------------------------------------------------------------------------------


def recorded(directory: Path) -> TraceWriter:
    """A journal with one part rolled already and the next one open, each with both kinds of page events."""
    writer = TraceWriter(directory, manifest(), reserve_bytes=4096)
    for first in (0, 20):
        writer.append(PACKED_TABLE, packed(first, 10))  # before "pages": the order of first rows is anybody's
        writer.append("pages", rows("pages", first + 10, 10))
        writer.append("counters", rows("counters", first, 20))
        writer.sync()
        if first == 0:
            writer.roll()
    return writer


def holds_forty(trace: Trace) -> bool:
    return bool(trace.table("pages")["ts_ns"].to_pylist() == list(range(1, 41))) and trace.n_rows("counters") == 40


def test_a_trace_of_both_kinds_is_whole(tmp_path: Path) -> None:
    recorded(tmp_path / "trace").close(manifest())
    assert holds_forty(open_trace(tmp_path / "trace"))


def test_a_disk_that_is_full_ends_with_both_kinds(tmp_path: Path) -> None:
    recorded(tmp_path / "trace").close_on_full_disk(manifest())
    assert holds_forty(open_trace(tmp_path / "trace"))


UNLINKS = {"before any part went": (), "between the parts": (PACKED_TABLE,), "behind both": (PACKED_TABLE, "pages")}


@pytest.mark.parametrize("moment", UNLINKS)
def test_a_kill_between_a_segment_and_the_end_of_its_parts_costs_nothing_and_doubles_nothing(
    tmp_path: Path, moment: str
) -> None:
    writer = recorded(tmp_path / "trace")
    parts = {path.name: path.read_bytes() for path in (tmp_path / "trace" / "journal").glob("*.arrows")}
    writer.roll()
    writer.abandon()
    gone = {f"{name}-00001.arrows" for name in UNLINKS[moment]}
    for name, data in parts.items():
        if name not in gone:
            (tmp_path / "trace" / "journal" / name).write_bytes(data)
    assert recover(tmp_path / "trace")["complete"] is False
    assert holds_forty(open_trace(tmp_path / "trace"))
    assert not list((tmp_path / "trace").glob("journal"))


def test_a_recovery_finishes_what_neither_part_has_become(tmp_path: Path) -> None:
    recorded(tmp_path / "trace").abandon()
    recover(tmp_path / "trace")
    trace = open_trace(tmp_path / "trace")
    assert holds_forty(trace)
    assert len(trace.manifest["tables"]["pages"]) == 2
