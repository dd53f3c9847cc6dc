"""The Perfetto trace against the schema that Perfetto's own package ships, and against the trace it was made of."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

from analyze.__main__ import main
from analyze.export import perfetto as export_perfetto
from analyze.export import perfetto_writer
from analyze.export.perfetto_writer import BEGIN, END, Events, Writer
from analyze.export.protobuf import varint
from analyze.nesting import _nest, nested_events
from collect.schema import TABLES
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_manifest, with_strings

SAMPLES = Path(__file__).parents[2] / "sample_traces"
SAMPLE = SAMPLES / "7.2-churn"


def exported(trace: Path, folder: Path) -> Any:
    out = folder / "out.pftrace"
    assert main(["export", str(trace), "-o", str(out)]) == 0
    found = perfetto.Trace()
    found.ParseFromString(out.read_bytes())
    return found


class Read:
    """What a reader of the format makes of a trace: tracks, and their slices, instants and counters, texts resolved."""

    def __init__(self, trace: Any) -> None:
        self.tracks: dict[int, Any] = {}
        self.slices: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.instants: dict[int, list[dict[str, Any]]] = defaultdict(list)
        self.values: dict[int, list[tuple[int, int]]] = defaultdict(list)
        names: dict[int, str] = {}
        keys: dict[int, str] = {}
        texts: dict[int, str] = {}
        events = []
        for packet in trace.packet:
            assert packet.trusted_packet_sequence_id == 1
            self.check_known(packet)
            names |= {one.iid: one.name for one in packet.interned_data.event_names}
            keys |= {one.iid: one.name for one in packet.interned_data.debug_annotation_names}
            texts |= {one.iid: one.str.decode() for one in packet.interned_data.debug_annotation_string_values}
            if packet.HasField("track_descriptor"):
                track = packet.track_descriptor
                assert track.uuid not in self.tracks and (not track.parent_uuid or track.parent_uuid in self.tracks)
                self.tracks[track.uuid] = track
            if packet.HasField("track_event"):
                event = packet.track_event
                assert event.track_uuid in self.tracks, "described before its first event"
                assert packet.sequence_flags & perfetto.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
                said: dict[str, Any] = {}
                for argument in event.debug_annotations:
                    kind = argument.WhichOneof("value")
                    value = getattr(argument, kind)
                    said[keys[argument.name_iid]] = texts[value] if kind == "string_value_iid" else value
                name = names[event.name_iid] if event.name_iid else None
                events.append((packet.timestamp, event.type, event.track_uuid, name, said, event.counter_value))
        events.sort(key=lambda event: event[0])  # stable, as Perfetto's own sorter is
        open_slices: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for ts, kind, track, name, said, value in events:
            if kind == perfetto.TrackEvent.TYPE_SLICE_BEGIN:
                one = {"ts": ts, "name": name, "depth": len(open_slices[track]), **said}
                self.slices[track].append(one)
                open_slices[track].append(one)
            elif kind == perfetto.TrackEvent.TYPE_SLICE_END:
                one = open_slices[track].pop()
                one["dur"] = ts - one["ts"]
            elif kind == perfetto.TrackEvent.TYPE_INSTANT:
                self.instants[track].append({"ts": ts, "name": name, **said})
            else:
                assert kind == perfetto.TrackEvent.TYPE_COUNTER and self.tracks[track].HasField("counter")
                self.values[track].append((ts, value))
        assert not any(open_slices.values()), "every slice ends"

    @staticmethod
    def check_known(message: Any) -> None:
        assert len(UnknownFieldSet(message)) == 0, "a field that the schema does not know"
        for field, value in message.ListFields():
            if field.message_type is not None:
                for one in value if field.is_repeated else [value]:
                    Read.check_known(one)

    def named(self, name: str) -> int:
        (uuid,) = [uuid for uuid, track in self.tracks.items() if track.name == name]
        return uuid


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Read:
    return Read(exported(SAMPLE, tmp_path_factory.mktemp("perfetto")))


def test_every_change_is_a_slice_of_its_thread_with_its_numbers(sample: Read) -> None:
    changes = open_trace(SAMPLE).table("changes").to_pandas().set_index("call_id")
    seen = {}
    for uuid, slices in sample.slices.items():
        if sample.tracks[uuid].HasField("thread"):
            for one in slices:
                seen[one["call_id"]] = (sample.tracks[uuid].thread, one)
    assert set(seen) == set(changes.index)
    for call_id, row in changes.iterrows():
        thread, one = seen[call_id]
        assert (thread.pid, thread.tid) == (row["tgid"], row["pid"])
        assert (one["ts"], one["dur"]) == (row["ts_ns"], row["duration_ns"])
        assert (one["address"], one["pfn"], one["n_pages"]) == (row["address"], row["pfn"], row["n_pages"])
        assert one["cpu"] == row["cpu"]
        assert one["depth"] == row["depth"]


def test_arguments_are_words_a_reader_knows(sample: Read) -> None:
    slices = [one for track in sample.slices.values() for one in track if "call_id" in one]
    assert {one["user"] for one in slices} == {"module", "bpf", "kprobe", "ftrace", "secretmem"}
    assert {one["level_before"] for one in slices} == {"4K", "2M", "1G"}
    freed = next(one for one in slices if one["name"] == "set_direct_map_invalid_noflush")
    assert freed["cleared"] == "P RW D" and freed["set"] == ""
    assert freed["stack"].startswith("set_direct_map_invalid_noflush+0x") and " < vfree" in freed["stack"]


def test_levels_end_where_the_page_tables_end(sample: Read) -> None:
    ends = {name: sample.values[sample.named(f"mapped by {name} entries")][-1][1] for name in ("4K", "2M", "1G")}
    assert ends == {"4K": 309_096 << 10, "2M": 4_933_632 << 10, "1G": 3_145_728 << 10}


def test_every_split_is_an_instant_of_its_user(sample: Read) -> None:
    by_user = {
        sample.tracks[uuid].name: [one["name"] for one in instants] for uuid, instants in sample.instants.items()
    }
    counts = {name: (names.count("2M split"), names.count("1G split")) for name, names in by_user.items()}
    assert counts == {"splits by module": (79, 0), "splits by bpf": (7, 0), "splits by secretmem": (50, 1)}


def test_counters_snapshots_and_the_verdict_are_there(sample: Read) -> None:
    assert [one["name"] for one in sample.slices[sample.named("snapshots")]] == [
        "snapshot: before_attach", "snapshot: start", "snapshot: end", "snapshot: after_detach",
    ]  # fmt: skip
    values = sample.values[sample.named("vmstat/direct_map_level2_splits")]
    assert (values[0][1], values[-1][1], len(values)) == (7, 146, 159)
    assert sample.values[sample.named("meminfo/DirectMap4k")][-1][1] == 321_384 << 10
    (recording,) = sample.slices[sample.named("recording")]
    assert recording["exact"] == "yes" and recording["health"].startswith("sound")
    assert recording["dur"] == 212_085_154_643 - 57_159_223_803


def test_losses_stand_where_they_happened(tmp_path: Path) -> None:
    source = write_trace(tmp_path / "source", 44, scale=0.02)
    trace = open_trace(source)
    counters = trace.table("counters")
    start = trace.manifest["ts_start_ns"]
    rows = {
        "ts_ns": [start, start + 10**9, start + 2 * 10**9],
        "counter": ["lost/changes_ring_full"] * 3,
        "value": [0, 0, 3],
    }
    lost = rewrite(
        source, tmp_path / "lost", "counters", pa.concat_tables([counters, pa.table(rows, TABLES["counters"])])
    )
    read = Read(exported(with_manifest(lost, lost, losses={"changes_ring_full": 3}), tmp_path))
    (span,) = read.slices[read.named("lost: changes, no room in their ring")]
    assert (span["name"], span["ts"], span["dur"]) == ("3 lost", start + 10**9, 10**9)
    assert "the state of the direct map" in span["puts in doubt"]


def test_what_is_gathered_together_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write_trace(tmp_path / "t", 6, scale=0.02)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = Read(exported(trace, tmp_path / "whole"))
    monkeypatch.setattr(export_perfetto, "BATCH_EVENTS", 5)
    monkeypatch.setattr(perfetto_writer, "BATCH_ROWS", 3)
    parts = Read(exported(trace, tmp_path / "parts"))
    assert (whole.slices, whole.instants, whole.values) == (parts.slices, parts.instants, parts.values)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    trace = with_strings(write_trace(tmp_path / "evil", 5, scale=0.03), "<b>\x1b[31m")
    read = Read(exported(trace, tmp_path))
    names = {track.thread.thread_name for track in read.tracks.values() if track.HasField("thread")}
    assert names == {"<b>\N{REPLACEMENT CHARACTER}[31m"}


def test_an_export_is_not_written_over_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = write_trace(tmp_path / "t", 6, scale=0.02)
    (tmp_path / "x").write_text("mine")
    assert main(["export", str(trace), "-o", str(tmp_path / "x")]) == 2
    assert "--force" in capsys.readouterr().err
    assert (tmp_path / "x").read_text() == "mine"
    assert main(["export", str(trace), "-o", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err
    assert main(["export", str(trace), "-o", str(tmp_path / "x"), "--force"]) == 0


# --- encoding and nesting, by the library's own decoder and a plain model -------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)), min_size=1
    )
)
def test_any_numbers_come_back(rows: list[tuple[int, int, int]]) -> None:
    file = io.BytesIO()
    writer = Writer(file)
    track = writer.counter("c", writer.track("t"))
    ts, address, value = (
        np.array(column, kind)
        for column, kind in zip(zip(*rows, strict=True), (np.int64, np.uint64, np.int64), strict=True)
    )
    writer.write(Events(4, ts, np.full(len(ts), track), value=value, addresses={"a": address}))
    found = perfetto.Trace()
    found.ParseFromString(file.getvalue())
    events = [packet for packet in found.packet if packet.HasField("track_event")]
    got = [(e.timestamp, e.track_event.debug_annotations[0].pointer_value, e.track_event.counter_value) for e in events]
    assert got == rows


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_read_back(value: int) -> None:
    packet = perfetto.TracePacket.FromString(varint(8 << 3) + varint(value))
    assert packet.timestamp == value


calls = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 12)), max_size=40)


@settings(deadline=None)
@given(calls)
def test_events_of_any_calls_nest_and_ascend(rows: list[tuple[int, int, int]]) -> None:
    thread = np.array([row[0] for row in rows], np.int64)
    begin = np.array([row[1] for row in rows], np.int64)
    end = begin + np.array([row[2] for row in rows], np.int64)
    row, is_end, ts = nested_events(thread, begin, end, np.zeros(len(rows), np.int64))
    assert (np.diff(ts) >= 0).all()
    running: dict[int, list[int]] = defaultdict(list)
    for at, ends, when in zip(row.tolist(), is_end.tolist(), ts.tolist(), strict=True):
        if ends:
            assert running[int(thread[at])].pop() == at, "the innermost ends first"
            assert begin[at] <= when <= end[at]
        else:
            assert when == begin[at]
            running[int(thread[at])].append(at)
    assert not any(running.values())
    assert sorted(row[~is_end].tolist()) == list(range(len(rows)))


@settings(deadline=None)
@given(calls)
def test_the_compiled_nesting_is_its_plain_twin(rows: list[tuple[int, int, int]]) -> None:
    thread, begin, span = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    order = np.lexsort((-(begin + span), begin, thread))

    def run(function: Any) -> list[np.ndarray]:
        n = len(rows)
        out = [np.zeros(2 * n, np.int64), np.zeros(2 * n, np.bool_), np.zeros(2 * n, np.int64)]
        function(order, thread, begin, begin + span, np.zeros(n, np.int64), np.zeros(n, np.int64), *out)
        return out

    for compiled, plain in zip(run(_nest), run(getattr(_nest, "py_func", _nest)), strict=True):
        assert (compiled == plain).all()


def test_calls_that_touch_are_neighbours_not_nested(tmp_path: Path) -> None:
    """Ends and begins of one moment keep their order in the file, so that no slice swallows the next."""
    file = io.BytesIO()
    writer = Writer(file)
    track = writer.track("t")
    begin, end = np.array([10, 20, 20], np.int64), np.array([20, 20, 30], np.int64)
    row, is_end, ts = nested_events(np.zeros(3, np.int64), begin, end, np.array([0, 1, 0], np.int64))
    tracks, names = np.full(3, track), pa.array(["a", "b", "c"]).dictionary_encode()
    writer.write(
        Events(BEGIN, ts[~is_end], tracks, name=names.take(pa.array(row[~is_end])), place=np.flatnonzero(~is_end)),
        Events(END, ts[is_end], tracks, place=np.flatnonzero(is_end)),
    )
    found = perfetto.Trace()
    found.ParseFromString(file.getvalue())
    read = Read(found)
    assert sorted((one["ts"], one["dur"]) for one in read.slices[track]) == [(10, 10), (20, 0), (20, 10)]
