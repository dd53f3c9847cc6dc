"""Traces from strangers, by hand: what is cut, forged, older, newer, oversized or dressed up gets an answer or one clear line.

`tests/fuzz` looks for what nobody thought of; `make test-every-byte` cuts at every byte where this takes samples.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analyze.__main__ import main
from analyze.analysis import analyse
from analyze.directmap import MAX_TB
from analyze.reconstruct import rebuild
from analyze.report.writer import write_report
from collect.errors import HostError, TraceError
from collect.manifest import MANIFEST
from collect.recovery import recover
from collect.schema import FORMAT_VERSION, TABLES
from collect.segments import JOURNAL_TABLES, read_cut_stream
from collect.trace import open_trace
from tests.fuzz.edits import Base, Draft, written
from tests.fuzz.inputs import killed
from tests.machine import write_trace
from tests.machine.rewrite import with_manifest

EVERY_BYTE = bool(os.environ.get("DIRECTMAP_EVERY_BYTE"))
"""Cut files at every byte, not at some 100 places and in the last 16 bytes, where the footer's length stands."""

EVIL = "<script>alert(1)</script>\x1b[2J\u202etxt.exe\u2066\n&"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 51, scale=0.02)


@pytest.fixture(scope="module")
def base(source: Path) -> Base:
    return Base(source)


def edited(base: Base, directory: Path, *edits: list[Any]) -> Path:
    draft = Draft(base)
    draft.make(list(edits))
    return written(draft, directory)


def refused(act: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises((TraceError, HostError)) as caught:
        act()
    line = str(caught.value)
    assert line.isprintable() and len(line) < 600
    return line


def read_all(directory: Path) -> None:
    trace = open_trace(directory)
    for name in TABLES:
        trace.table(name)


def cuts(size: int, places: int) -> list[int]:
    """Where to cut a file, in ascending order."""
    step = 1 if EVERY_BYTE else max(1, size // places)
    return sorted({*range(0, size, step), *range(max(0, size - 16), size)})


# --- cut anywhere ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_cut_at_any_byte_is_refused_even_where_the_manifest_was_cut_to_fit(
    base: Base, source: Path, tmp_path: Path, name: str
) -> None:
    manifest = json.loads((source / MANIFEST).read_text())
    (entry,) = manifest["tables"][name]
    for other in manifest["tables"]:  # the rest is not looked at, thousands of times
        manifest["tables"][other] = [entry] if other == name else []
    content = base.files[entry["file"]]
    directory = tmp_path / "t"
    directory.mkdir()
    for size in cuts(len(content), 100):
        (directory / entry["file"]).write_bytes(content[:size])
        for stated in (size, len(content)):
            entry["bytes"] = stated
            (directory / MANIFEST).write_text(json.dumps(manifest))
            assert entry["file"] in refused(lambda: read_all(directory))


def test_a_manifest_cut_at_any_byte_is_refused(source: Path, tmp_path: Path) -> None:
    directory = tmp_path / "t"
    shutil.copytree(source, directory)
    text = (directory / MANIFEST).read_bytes()
    for size in cuts(len(text.rstrip()), 200):
        (directory / MANIFEST).write_bytes(text[:size])
        assert MANIFEST in refused(lambda: open_trace(directory))


@pytest.mark.parametrize("part", ["counters", "changes", "snapshots", "regions", "pages", "pages_packed", "strings"])
def test_a_journal_cut_at_any_byte_is_recovered_up_to_there_or_refused(source: Path, tmp_path: Path, part: str) -> None:
    pristine = killed(source, tmp_path / "killed", most_rows=150)
    (path,) = (pristine / "journal").glob(f"{part}-*.arrows")
    content = path.read_bytes()
    for other in (pristine / "journal").glob("*.arrows"):
        if other.name != path.name:
            other.unlink()
    read = []
    for size in [*cuts(len(content), 100), len(content)]:
        batches = read_cut_stream(pa.BufferReader(content[:size]), JOURNAL_TABLES[part])
        read.append(sum(batch.num_rows for batch in batches))
    assert read == sorted(read) and read[0] == 0 < read[-1]
    rows = []
    for size in [*range(0, len(content), len(content) // 16), len(content) - 1, len(content)]:
        directory = tmp_path / "t"
        shutil.copytree(pristine, directory)
        (directory / "journal" / path.name).write_bytes(content[:size])
        manifest = recover(directory)
        read_all(directory)
        rows.append(sum(segment["rows"] for segment in manifest["tables"][part.removesuffix("_packed")]))
        shutil.rmtree(directory)
    assert rows == sorted(rows) and len(set(rows)) > 1


# --- files that are not files, tables that are no tables --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "directory", "link", "zero", "empty"])
@pytest.mark.parametrize("file", [MANIFEST, "changes-00000.parquet"])
def test_what_is_not_a_file_is_refused_at_once(base: Base, tmp_path: Path, kind: str, file: str) -> None:
    claims = [["claim", "changes", "bytes", 0]]  # the size of a pipe and of a device
    directory = edited(base, tmp_path / "t", ["kind", file, kind], *claims)
    assert file in refused(lambda: read_all(directory))


def test_a_pipe_in_a_journal_is_refused_at_once(source: Path, tmp_path: Path) -> None:
    directory = killed(source, tmp_path / "killed")
    part = next((directory / "journal").glob("counters-*.arrows"))
    part.unlink()
    os.mkfifo(part)
    assert part.name in refused(lambda: recover(directory))


def test_files_that_nobody_listed_change_nothing(base: Base, tmp_path: Path) -> None:
    extra = edited(
        base, tmp_path / "t", ["extra", "nothing-00000.parquet", "00"], ["extra", "changes-00007.parquet", ""]
    )
    assert analyse(extra).verification["exact"]


def test_a_table_that_is_missing_is_named(base: Base, tmp_path: Path) -> None:
    assert "regions-00000.parquet" in refused(
        lambda: open_trace(edited(base, tmp_path / "a", ["gone", "regions-00000.parquet"]))
    )
    assert "'regions'" in refused(lambda: open_trace(edited(base, tmp_path / "b", ["del", ["tables", "regions"]])))


def test_a_trace_of_an_older_format_is_read_and_of_a_newer_one_refused(base: Base, tmp_path: Path) -> None:
    older = edited(base, tmp_path / "older", ["set", ["format_version"], 1], ["del", ["tables", "splits"]])
    assert analyse(older).verification["end_snapshot"]
    newer = edited(base, tmp_path / "newer", ["set", ["format_version"], FORMAT_VERSION + 1])
    line = refused(lambda: open_trace(newer))
    assert f"format version {FORMAT_VERSION + 1}" in line and "install a newer directmap" in line


# --- numbers that lie ------------------------------------------------------------------------------------------------


FORGED = {
    "rows of the manifest": ([["claim", "changes", "rows", 1 << 40]], "rows"),
    "more rows than memory": ([["claim", "changes", "rows", 1 << 26]], "rows"),
    "a page beyond memory": ([["cell", "changes", "address", 150, (1 << 64) - 4096], ["cell", "changes", "space", 150, 0], ["cell", "changes", "flags", 150, 0]], "memory ends"),
    "a page array beyond memory": ([["cell", "changes", "pfns", 150, [1 << 50]]], "memory ends"),
    "a snapshot beyond memory": ([["cell", "snapshots", "pfn", 3000, 1 << 40]], "do not fit"),
    "more leaves than memory": ([["column", "snapshots", "n_leaves", 1 << 60]], "do not fit"),
    "an unknown kind": ([["cell", "changes", "kind", 5, 99]], "does not know"),
    "an unknown moment": ([["cell", "snapshots", "moment", 5, 99]], "unknown"),
    "a call that comes twice": ([["add", "changes", 5, {}, 1]], "comes twice"),
    "a time of centuries": ([["cell", "changes", "ts_ns", 5, 1 << 63]], "centuries"),
    "more splitting than memory holds": ([["set", ["memory", "max_pfn"], 1 << 40]], f"{MAX_TB} TB"),
    "5 levels, 4 PB": ([["set", ["memory", "max_pfn"], 1 << 40], ["set", ["memory", "paging_levels"], 5]], f"{MAX_TB} TB"),
}  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_a_number_that_lies_is_refused_with_what_and_where(base: Base, tmp_path: Path, what: str) -> None:
    edits, says = FORGED[what]
    directory = edited(base, tmp_path / "t", *edits)
    line = refused(lambda: rebuild(open_trace(directory)))
    assert says in line and str(directory) in line and ";" in line


def test_more_work_than_any_recording_is_refused_before_it_is_done(base: Base, tmp_path: Path) -> None:
    whole = {"space": 0, "flags": 0, "kind": 0, "pfns": [], "n_pages": 4 << 18, "n_done": 4 << 18, "ret": 0}
    whole["address"] = base.manifest["memory"]["page_offset"]
    many = [["add", "changes", 150, whole | {"call_id": 1 << 40 | i}, 1] for i in range(2100)]
    directory = edited(base, tmp_path / "t", *many)
    began = time.process_time()
    assert "no recording comes near that" in refused(lambda: rebuild(open_trace(directory)))
    assert time.process_time() - began < 5


def test_rows_by_the_million_in_a_few_bytes_are_refused_unread(base: Base, tmp_path: Path) -> None:
    directory = edited(base, tmp_path / "t")
    path = directory / "changes-00000.parquet"
    row = base.tables["changes"].slice(100, 1)
    pq.write_table(row.take([0] * 1_200_000), path, compression="zstd")
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["tables"]["changes"] = [{"file": path.name, "rows": 1_200_000, "bytes": path.stat().st_size}]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    assert path.stat().st_size < 1 << 17
    assert "no recording packs that tight" in refused(lambda: open_trace(directory))


def test_a_map_that_is_split_beyond_what_memory_holds_is_refused(base: Base, tmp_path: Path) -> None:
    terabyte = (1 << 28) - (4 << 18)
    directory = edited(
        base,
        tmp_path / "t",
        ["set", ["memory", "max_pfn"], 1 << 28],
        ["add", "snapshots", 0, {"pfn": 4 << 18, "level": 3, "n_leaves": terabyte >> 18, "space": 0, "snapshot": 1, "moment": 1}, 1],
        ["add", "changes", 150, {"space": 0, "flags": 0, "kind": 0, "pfns": [], "n_pages": terabyte, "n_done": terabyte, "ret": 0, "call_id": 1 << 40, "force_split": 1, "address": base.manifest["memory"]["page_offset"] + (4 << 30)}, 1],
    )  # fmt: skip
    assert "512 GB" in refused(lambda: rebuild(open_trace(directory)))


def test_time_that_runs_backwards_is_answered_or_refused(base: Base, tmp_path: Path) -> None:
    last = base.manifest["ts_end_ns"]
    for i, edits in enumerate(
        [
            [["order", "changes", 7]],
            [["order", "snapshots", 7]],
            [["order", "counters", 7]],
            [["order", "regions", 7]],
            [["order", "pages", 7]],
            [["set", ["ts_start_ns"], last], ["set", ["ts_end_ns"], 0]],
            [["column", "changes", "ts_ns", 0]],
            [["column", "snapshots", "ts_ns", last], ["column", "snapshots", "ts_end_ns", 0]],
        ]
    ):
        directory = edited(base, tmp_path / str(i), *edits)
        try:
            analyse(directory)
        except TraceError as error:
            assert str(error).isprintable() and str(directory) in str(error)


# --- names that do something -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dressed_up(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace whose every name holds markup, escape codes and marks that turn the direction of text."""
    return edited(
        base,
        tmp_path_factory.mktemp("evil") / "t",
        ["column", "strings", "text", EVIL],
        ["column", "stacks", "frames", [EVIL, "set_memory_ro+0x1", EVIL]],
        ["cell", "counters", "counter", 3, EVIL],
        ["set", ["kernel", "release"], EVIL],
        ["set", ["kernel", "version"], EVIL],
        ["set", ["kernel", "cmdline"], EVIL],
        ["set", ["cpu", "model"], EVIL],
        ["set", ["command"], [EVIL]],
        ["set", ["created"], EVIL],
        ["set", ["tool_version"], EVIL],
        ["set", ["losses"], {EVIL: 3}],
        ["set", ["probes"], {"attached": [EVIL], "missing": [{"name": EVIL, "why": EVIL, "costs": EVIL}]}],
    )


def test_no_name_reaches_a_terminal_as_more_than_text(dressed_up: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("info", "verify", "who", "health"):
        assert main([command, str(dressed_up)]) in (0, 1)
        said = capsys.readouterr()
        assert said.err == ""
        assert said.out and all(line.isprintable() for line in said.out.splitlines())


def test_no_name_reaches_a_page_as_more_than_text(dressed_up: Path, tmp_path: Path) -> None:
    page = write_report(dressed_up, tmp_path / "report").read_text(encoding="utf-8")
    assert "<script" not in page and "alert(1)" in page
    assert not any(mark in page for mark in "\x1b\u202e\u2066")


def test_no_name_reaches_a_terminal_through_an_error(source: Path, tmp_path: Path) -> None:
    tables = json.loads((source / MANIFEST).read_text())["tables"]
    named = with_manifest(
        source,
        tmp_path / "t",
        tables=tables | {"changes": [{"file": f"changes-{EVIL}.parquet", "rows": 1, "bytes": 1}]},
    )
    refused(lambda: open_trace(named))


def test_what_a_library_says_of_damage_is_printable(base: Base, tmp_path: Path) -> None:
    """Parquet's own message names an unknown type by its raw byte."""
    directory = edited(base, tmp_path / "t", ["poke", "strings-00000.parquet", -780, "ff72"])
    assert "strings-00000.parquet" in refused(lambda: read_all(directory))


def test_text_that_is_not_utf8_is_named(base: Base, tmp_path: Path) -> None:
    directory = edited(base, tmp_path / "t", ["raw", "strings", "text", 0, "ff"])
    assert pq.read_table(directory / "strings-00000.parquet").num_rows == len(base.tables["strings"])
    assert "strings-00000.parquet" in refused(lambda: read_all(directory))
