"""The trace format: what is written is read back, what was killed is recovered, what is damaged is named in one line."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collect.errors import HostError, TraceError
from collect.journal import TraceWriter
from collect.manifest import FORMAT, MANIFEST
from collect.recovery import recover
from collect.schema import FORMAT_VERSION, TABLES, TABLES_SINCE
from collect.trace import open_trace

N_COUNTERS = 23


def manifest(**changed: Any) -> dict[str, Any]:
    """The least that a reader asks for, of a machine with 8 MiB."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tool_version": "0.1.0",
        "complete": True,
        "command": ["directmap-collect", "record"],
        "created": "2026-01-02T03:04:05+00:00",
        "ts_start_ns": 1_000,
        "ts_end_ns": 2_000,
        "kernel": {"release": "6.1.0", "version": "#1", "boot_id": "0", "cmdline": "", "config": {}},
        "cpu": {"model": "none", "n_possible": 1, "n_online": 1, "emulated": True, "hypervisor": None},
        "memory": {
            "max_pfn": 2048,
            "ranges": [[1, 1000], [1024, 2048]],
            "page_offset": 0xFFFF_8880_0000_0000,
            "paging_levels": 4,
            "rodata": [16, 32],
            "kfence_pool": None,
        },
        "recorder": {"pid": 7, "tgid": 7},
        "probes": {"attached": ["cpa"], "missing": []},
        "sampling": {"pages": "scoped"},
        "losses": {"ring_full": 0},
        **changed,
    }


def counters(first: int, n: int) -> pa.Table:
    """Rows `first` to `first + n - 1` of a counter that counts them, in reverse order of time."""
    numbers = list(reversed(range(first, first + n)))
    return pa.table(
        {"ts_ns": [1_000 + i for i in numbers], "counter": ["vmstat/x"] * n, "value": numbers},
        schema=TABLES["counters"],
    )


def regions() -> pa.Table:
    """One row with page frames, for a list column travels by another path than a number."""
    row: dict[str, Any] = dict.fromkeys(TABLES["regions"].names, 0)
    row |= {"ts_ns": 1_500, "kind": 2, "region_id": 1, "pfns": [5, 6, 7]}
    return pa.Table.from_pylist([row], schema=TABLES["regions"])


def write(directory: Path, **changed: Any) -> Path:
    writer = TraceWriter(directory, manifest())
    writer.append("counters", counters(0, N_COUNTERS))
    writer.append("regions", regions())
    writer.sync()
    writer.close(manifest(**changed))
    return directory


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return write(tmp_path / "trace")


# --- round trip ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(trace: Path) -> None:
    opened = open_trace(trace)
    assert opened.manifest["kernel"]["release"] == "6.1.0"
    assert opened.n_rows("counters") == N_COUNTERS
    assert opened.table("counters")["value"].to_pylist() == list(range(N_COUNTERS)), "rows are sorted by time"
    assert opened.table("regions", ["pfns"])["pfns"].to_pylist() == [[5, 6, 7]]
    for name, schema in TABLES.items():
        assert opened.table(name).schema.equals(schema), name


def test_a_table_that_an_older_format_lacks_reads_empty(trace: Path) -> None:
    path = trace / "manifest.json"
    older = json.loads(path.read_text())
    for name, since in TABLES_SINCE.items():
        assert since > 1
        del older["tables"][name]
    path.write_text(json.dumps(older | {"format_version": 1}))
    opened = open_trace(trace)
    for name in TABLES_SINCE:
        assert (opened.n_rows(name), opened.table(name).schema) == (0, TABLES[name])
    path.write_text(json.dumps(older))
    with pytest.raises(TraceError, match="table 'splits' is not listed"):
        open_trace(trace)


def test_any_reader_of_parquet_opens_a_table_without_us(trace: Path) -> None:
    assert pq.read_table(trace / "counters-00000.parquet").num_rows == N_COUNTERS


def test_a_long_recording_is_read_as_one_table(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", manifest())
    for part in range(3):
        writer.append("counters", counters(part * 10, 10))
        writer.roll()
    writer.close(manifest())
    opened = open_trace(tmp_path / "trace")
    assert len(opened.manifest["tables"]["counters"]) == 3
    assert opened.table("counters")["value"].to_pylist() == list(range(30))


def test_a_whole_trace_holds_no_journal_and_nothing_temporary(trace: Path) -> None:
    assert sorted(path.name for path in trace.iterdir()) == [
        "counters-00000.parquet",
        MANIFEST,
        "regions-00000.parquet",
    ]


def test_files_are_for_their_owner_only(trace: Path) -> None:
    assert stat.S_IMODE(trace.stat().st_mode) == 0o700
    for path in trace.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_rows_that_do_not_fit_the_schema_are_refused(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", manifest())
    with pytest.raises(AssertionError, match="do not fit the schema"):
        writer.append("counters", regions())


# --- one writer, and nothing lost by accident ------------------------------------------------------------------------


def test_a_trace_is_not_overwritten_without_force(trace: Path) -> None:
    with pytest.raises(HostError, match="--force"):
        TraceWriter(trace, manifest())
    assert open_trace(trace).n_rows("counters") == N_COUNTERS


def test_with_force_the_old_trace_is_gone(trace: Path) -> None:
    writer = TraceWriter(trace, manifest(), force=True)
    writer.close(manifest())
    assert open_trace(trace).n_rows("counters") == 0


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_of_other_things_is_never_touched(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(HostError, match=r"thesis\.txt"):
        TraceWriter(tmp_path, manifest(), force=force)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_second_writer_is_refused_even_with_force(tmp_path: Path) -> None:
    first = TraceWriter(tmp_path / "trace", manifest())
    first.append("counters", counters(0, 3))
    with pytest.raises(HostError, match="another recorder"):
        TraceWriter(tmp_path / "trace", manifest(), force=True)
    first.close(manifest())
    assert open_trace(tmp_path / "trace").n_rows("counters") == 3


def test_recover_is_refused_while_the_recorder_runs(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", manifest())
    with pytest.raises(HostError, match="another recorder"):
        recover(tmp_path / "trace")
    writer.abandon()


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep")
    writer = TraceWriter(tmp_path / "trace", manifest())
    (tmp_path / "trace" / "manifest.tmp").symlink_to(precious)
    with pytest.raises(OSError):
        writer.close(manifest())
    assert precious.read_text() == "keep"


# --- recovery --------------------------------------------------------------------------------------------------------


def killed(directory: Path) -> Path:
    """A recording of two parts, the first rolled to a segment, killed in the second."""
    writer = TraceWriter(directory, manifest())
    writer.append("counters", counters(0, 10))
    writer.roll()
    for i in range(10, 20):
        writer.append("counters", counters(i, 1))
    writer.append("regions", regions())
    writer.sync()
    writer.abandon()
    return directory


def test_a_killed_recording_is_recovered_whole(tmp_path: Path) -> None:
    directory = killed(tmp_path / "trace")
    with pytest.raises(TraceError, match="directmap-collect recover"):
        open_trace(directory)
    assert recover(directory)["complete"] is False
    opened = open_trace(directory)
    assert opened.manifest["complete"] is False
    assert opened.table("counters")["value"].to_pylist() == list(range(20))
    assert opened.table("regions")["pfns"].to_pylist() == [[5, 6, 7]]
    assert not (directory / "journal").exists()


def test_a_recovery_knows_of_memory_that_came_since_the_start(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "trace", manifest())
    writer.append("counters", counters(0, 1))
    writer.sync()
    grown = manifest()["memory"] | {"max_pfn": 4096}
    writer.note(manifest(memory=grown))
    writer.abandon()
    assert recover(tmp_path / "trace")["memory"]["max_pfn"] == 4096


def test_a_journal_cut_anywhere_is_recovered_up_to_the_cut(tmp_path: Path) -> None:
    """What was rolled is always there; the rest is a prefix of what was written, never wrong and never out of order."""
    pristine = killed(tmp_path / "pristine")
    stream = pristine / "journal" / "counters-00001.arrows"
    size = stream.stat().st_size
    recovered = []
    for cut in sorted({*range(0, size, max(1, size // 60)), 1, 7, 8, 9, size - 1, size}):
        directory = tmp_path / f"cut-{cut}"
        shutil.copytree(pristine, directory)
        with (directory / "journal" / stream.name).open("r+b") as file:
            file.truncate(cut)
        recover(directory)
        values = open_trace(directory).table("counters")["value"].to_pylist()
        assert values == list(range(len(values))) and len(values) >= 10, cut
        recovered.append(len(values))
        shutil.rmtree(directory)
    assert recovered == sorted(recovered)
    assert recovered[0] == 10 and recovered[-1] == 20


def test_a_kill_between_segment_and_journal_does_not_count_rows_twice(tmp_path: Path) -> None:
    directory = tmp_path / "trace"
    writer = TraceWriter(directory, manifest())
    writer.append("counters", counters(0, 10))
    writer.sync()
    part = (directory / "journal" / "counters-00000.arrows").read_bytes()
    writer.roll()
    (directory / "journal" / "counters-00000.arrows").write_bytes(part)
    writer.abandon()
    recover(directory)
    assert open_trace(directory).n_rows("counters") == 10


def test_recover_of_a_whole_trace_says_so(trace: Path) -> None:
    with pytest.raises(TraceError, match="nothing to recover"):
        recover(trace)


def test_recover_of_something_else_says_so(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no journal"):
        recover(tmp_path)


# --- damage ----------------------------------------------------------------------------------------------------------


def edit(trace: Path, **changed: Any) -> None:
    path = trace / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def edit_memory(trace: Path, **changed: Any) -> None:
    edit(trace, memory=manifest()["memory"] | changed)


def edit_segment(trace: Path, **changed: Any) -> None:
    path = trace / MANIFEST
    content = json.loads(path.read_text())
    content["tables"]["counters"][0] |= changed
    path.write_text(json.dumps(content))


def replace_table(trace: Path, table: pa.Table) -> None:
    pq.write_table(table, trace / "counters-00000.parquet")
    edit_segment(trace, bytes=(trace / "counters-00000.parquet").stat().st_size, rows=table.num_rows)


def flip_a_byte_of_data(trace: Path) -> None:
    path = trace / "counters-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0x40
    path.write_bytes(content)


def garbage(trace: Path) -> None:
    path = trace / "counters-00000.parquet"
    path.write_bytes(b"PAR1" + b"\xff" * (path.stat().st_size - 8) + b"PAR1")


def nulls(trace: Path) -> None:
    schema = pa.schema([pa.field(f.name, f.type) for f in TABLES["counters"]])
    replace_table(trace, pa.table({"ts_ns": [None], "counter": ["x"], "value": [1]}, schema=schema))


SEGMENT = "counters-00000.parquet"
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    # what was done: (how, the file that the answer must name, what the answer must say)
    "directory gone": (lambda t: shutil.rmtree(t), "", "no such directory"),
    "manifest gone": (lambda t: (t / MANIFEST).unlink(), MANIFEST, "missing"),
    "manifest empty": (lambda t: (t / MANIFEST).write_text(""), MANIFEST, "unreadable"),
    "manifest cut": (lambda t: (t / MANIFEST).write_text((t / MANIFEST).read_text()[:300]), MANIFEST, "unreadable"),
    "manifest binary": (lambda t: (t / MANIFEST).write_bytes(b"\x80\x81\x82"), MANIFEST, "unreadable"),
    "manifest nested too deep": (lambda t: (t / MANIFEST).write_text("[" * 200_000), MANIFEST, "unreadable"),
    "manifest huge": (lambda t: (t / MANIFEST).write_text(" " * (5 << 20)), MANIFEST, "larger than"),
    "manifest a list": (lambda t: (t / MANIFEST).write_text("[]"), MANIFEST, "not the manifest"),
    "manifest of another tool": (lambda t: edit(t, format="perf"), MANIFEST, "not the manifest"),
    "newer format": (lambda t: edit(t, format_version=FORMAT_VERSION + 1), MANIFEST, "install a newer directmap"),
    "format not a number": (lambda t: edit(t, format_version="one"), MANIFEST, "not a number"),
    "format zero": (lambda t: edit(t, format_version=0), MANIFEST, "not a number"),
    "key of another type": (lambda t: edit(t, losses=[]), MANIFEST, "losses"),
    "loss below zero": (lambda t: edit(t, losses={"x": -1}), MANIFEST, "losses"),
    "time out of range": (lambda t: edit(t, ts_end_ns=1 << 62), MANIFEST, "out of range"),
    "number past 64 bits": (lambda t: edit(t, cpu={"n_online": 1 << 64}), MANIFEST, "a number of 20 digits"),
    "number of many digits": (lambda t: edit(t, cpu={"n_online": 10**400}), MANIFEST, "a number of 401 digits"),
    "number that is none": (lambda t: edit(t, cpu={"n_online": float("nan")}), MANIFEST, "not finite"),
    "memory without end": (lambda t: edit_memory(t, max_pfn=1 << 60), MANIFEST, "max_pfn"),
    "memory descending": (lambda t: edit_memory(t, ranges=[[9, 20], [1, 5]]), MANIFEST, "ascending"),
    "memory past its end": (lambda t: edit_memory(t, ranges=[[1, 4096]]), MANIFEST, "max_pfn"),
    "paging levels unheard of": (lambda t: edit_memory(t, paging_levels=7), MANIFEST, "paging_levels"),
    "rodata not a pair": (lambda t: edit_memory(t, rodata=[1]), MANIFEST, "rodata"),
    "table not listed": (lambda t: edit(t, tables={}), MANIFEST, "not listed"),
    "segment outside": (lambda t: edit_segment(t, file="../../etc/passwd"), MANIFEST, "names the file"),
    "segment of another table": (lambda t: edit_segment(t, file="regions-00000.parquet"), MANIFEST, "names the file"),
    "segment gone": (lambda t: (t / SEGMENT).unlink(), SEGMENT, "missing"),
    "segment empty": (lambda t: (t / SEGMENT).write_bytes(b""), SEGMENT, "truncated"),
    "segment cut": (lambda t: (t / SEGMENT).write_bytes((t / SEGMENT).read_bytes()[:-9]), SEGMENT, "truncated"),
    "segment garbage": (garbage, SEGMENT, "damaged"),
    "segment with a flipped bit": (flip_a_byte_of_data, SEGMENT, "damaged"),
    "segment of other columns": (
        lambda t: replace_table(t, pa.table({"a": [1], "b": [2]})),
        SEGMENT,
        "not the columns",
    ),
    "rows forged": (lambda t: edit_segment(t, rows=N_COUNTERS + 1), SEGMENT, "rows"),
    "nulls": (nulls, SEGMENT, ""),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_answered_in_one_line_that_names_the_file_and_what_to_do(trace: Path, what: str) -> None:
    damage, file, says = DAMAGE[what]
    damage(trace)
    with pytest.raises(TraceError) as caught:
        opened = open_trace(trace)
        for name in TABLES:
            opened.table(name)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    assert str(trace / file) in message if file else str(trace) in message
    assert says in message
    assert ";" in message, "what was found; what to do"


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="not a directory"):
        open_trace(tmp_path / "file")


def test_a_file_name_with_control_characters_stays_on_one_line(trace: Path) -> None:
    edit_segment(trace, file="counters-\x1b[31m\nred.txt")
    with pytest.raises(TraceError) as caught:
        open_trace(trace)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_directory_of_traces_names_some_of_them(tmp_path: Path) -> None:
    def told(names: list[str]) -> str:
        for name in names:
            (tmp_path / name).mkdir()
            (tmp_path / name / MANIFEST).write_text("{}")
        with pytest.raises(TraceError) as caught:
            open_trace(tmp_path)
        return str(caught.value).removeprefix(f"{tmp_path}")

    (tmp_path / "a-empty").mkdir()
    (tmp_path / "a-file").write_text("")
    assert "not a directmap trace" in told([])
    assert told(["b", "c"]) == ": not a trace itself, it holds traces: b, c; give one of them"
    assert "traces: b, c, d, e, f and 2 more;" in told(["d", "e", "f", "g", "h"])
    evil = told(["\x1b[31m\n\u00e9" + "x" * 200])
    assert evil.isascii() and evil.isprintable() and len(evil) < 200
    assert r"traces: ?[31m?\xe9xxx" in evil
