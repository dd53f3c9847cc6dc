"""What a kill, a full disk and a power cut leave of a recording: everything that the writer called safe, and no more than whole rows."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect import durable
from collect.errors import HostError, TraceError
from collect.journal import TraceWriter
from collect.manifest import MANIFEST
from collect.recovery import recover
from collect.trace import Trace, open_trace
from tests.machine.writing import rows
from tests.unit.test_trace_format import manifest

ROOT = Path(__file__).parents[2]
N_KILLS = 100
MOST_ROWS = 2_000
"""Of some 35,000 that a writer writes, a segment for each 500: how many are safe, at most, when a kill is due."""


@pytest.fixture(scope="module")
def writers() -> Iterator[subprocess.Popen[str]]:
    """Forks a writing process for each line that it is given."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.machine.writing", json.dumps(manifest())],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"},
    )  # fmt: skip
    yield process
    assert process.stdin
    process.stdin.close()
    process.wait(10)


def finished(directory: Path) -> Trace:
    """The trace that a kill left, by way of `recover` unless it was whole by then."""
    try:
        recover(directory)
    except TraceError as error:
        assert "whole already" in str(error)
    return open_trace(directory)


def counted(trace: Trace) -> int:
    """Rows without a gap, after a look that none is there twice or out of order; the fewer of both tables.

    Page events come from two streams: of what was not safe yet, the one may have more than the other.
    """
    values = trace.table("counters")["value"].to_pylist()
    times = trace.table("pages")["ts_ns"].to_numpy()
    assert values == list(range(len(values)))
    assert (np.diff(times.astype(np.int64)) > 0).all()
    return min(len(values), int((times == np.arange(1, len(times) + 1, dtype=np.uint64)).sum()))


def acknowledged(said: Path) -> int:
    """Rows that a writer has called safe."""
    return int.from_bytes(said.read_bytes(), "little") if said.exists() else 0


def test_a_hundred_kills_cost_nothing_that_was_safe(writers: subprocess.Popen[str], tmp_path: Path) -> None:
    assert writers.stdin and writers.stdout
    chance = random.Random(1)
    moments = {"before": 0, "journal": 0, "rolled": 0, "closed": 0}
    for i in range(N_KILLS):
        directory, said = tmp_path / f"trace-{i}", tmp_path / f"said-{i}"
        print(directory, said, i, file=writers.stdin, flush=True)
        pid = int(writers.stdout.readline())
        due = chance.randrange(MOST_ROWS)
        while i % 20 and acknowledged(said) < due:  # but some before it has begun
            time.sleep(0.001)
        time.sleep(chance.random() / 50)
        os.kill(pid, signal.SIGKILL)
        assert writers.stdout.readline() == "gone\n"
        safe = acknowledged(said)
        if not (directory / MANIFEST).exists() and not (directory / "journal" / MANIFEST).exists():
            assert safe == 0, "nothing was recorded yet"
            moments["before"] += 1
            continue
        moment = "closed" if (directory / MANIFEST).exists() else "journal"
        moments["rolled" if moment == "journal" and list(directory.glob("*.parquet")) else moment] += 1
        assert counted(finished(directory)) >= safe
        assert [path.name for path in directory.iterdir() if path.suffix not in (".json", ".parquet")] == []
    assert moments["rolled"] >= N_KILLS // 2, f"the kills came at moments that try little: {moments}"


def test_a_kill_between_the_manifest_and_the_end_of_the_journal_is_finished(tmp_path: Path, monkeypatch: Any) -> None:
    writer = TraceWriter(tmp_path / "trace", manifest(), reserve_bytes=4096)
    writer.append("counters", rows("counters", 0, 5))
    monkeypatch.setattr(writer, "_drop_journal", writer._lock.close)
    writer.close(manifest())
    assert recover(tmp_path / "trace")["complete"] is True
    assert not (tmp_path / "trace" / "journal").exists()
    assert open_trace(tmp_path / "trace").n_rows("counters") == 5


# --- power cuts ------------------------------------------------------------------------------------------------------


def test_nothing_is_dropped_before_what_replaces_it_is_on_the_disk(tmp_path: Path, monkeypatch: Any) -> None:
    """Each file is synced before it gets its name, its folder after that, and only then goes the journal's part."""
    done: list[str] = []
    fsync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def told_fsync(fd: int) -> None:
        name = Path("/proc/self/fd", str(fd)).readlink().name
        done.append(f"sync {name}")
        fsync(fd)

    def told_rename(self: Path, target: Path) -> Path:
        done.append(f"rename {Path(target).name}")
        return rename(self, target)

    def told_unlink(self: Path, missing_ok: bool = False) -> None:
        done.append(f"unlink {self.name}")
        unlink(self, missing_ok)

    def told_rmtree(path: Path) -> None:
        done.append(f"rmtree {path.name}")

    writer = TraceWriter(tmp_path / "trace", manifest(), reserve_bytes=4096)
    monkeypatch.setattr(os, "fsync", told_fsync)
    monkeypatch.setattr(Path, "rename", told_rename)
    monkeypatch.setattr(Path, "unlink", told_unlink)
    monkeypatch.setattr("collect.journal.shutil.rmtree", told_rmtree)
    writer.append("counters", rows("counters", 0, 5))
    writer.sync()
    writer.close(manifest())
    assert done == [
        "sync counters-00000.arrows",
        "sync journal",
        "sync counters-00000.arrows",
        "sync counters-00000.tmp",
        "rename counters-00000.parquet",
        "sync trace",
        "unlink counters-00000.arrows",
        "sync manifest.tmp",
        "rename manifest.json",
        "sync trace",
        "rmtree journal",
        "sync trace",
    ]


# --- two recorders ---------------------------------------------------------------------------------------------------


def test_a_segment_that_cannot_be_made_for_any_reason_leaves_its_rows_in_the_journal(
    tmp_path: Path, monkeypatch: Any
) -> None:
    writer = TraceWriter(tmp_path / "trace", manifest())
    writer.append("counters", rows("counters", 0, 23))
    writer.sync()

    def no_memory(part: Path, directory: Path) -> None:
        raise MemoryError("malloc of size 64 failed")

    with monkeypatch.context() as patched:
        patched.setattr("collect.journal.segment_of", no_memory)
        with pytest.raises(MemoryError):
            writer.close(manifest() | {"complete": True})
    writer.abandon()
    assert not (tmp_path / "trace" / MANIFEST).exists()
    recover(tmp_path / "trace")
    assert open_trace(tmp_path / "trace").n_rows("counters") == 23


def test_a_journal_that_was_replaced_while_we_waited_is_not_ours(tmp_path: Path) -> None:
    """The lock of a journal that another recorder has just removed would lock nothing."""
    journal = tmp_path / "journal"
    journal.mkdir()
    opened = durable.open_private

    def replaced_meanwhile(path: Path) -> Any:
        file = opened(path)
        path.unlink()
        return file

    durable.open_private = replaced_meanwhile
    try:
        with pytest.raises(HostError, match="another recorder writes here"):
            durable.lock(journal)
    finally:
        durable.open_private = opened


# --- full disks ------------------------------------------------------------------------------------------------------

needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: run make test as root")


def filled(tmp_path: Path, frees: list[int], reserve: int) -> dict[int, dict[str, Any]]:
    """What became of a recording for each room on a disk of its own, in a mount namespace that ends with the process."""
    (tmp_path / "disk").mkdir(exist_ok=True)
    script = 'mount -t tmpfs -o size=16m none "$0" && exec "$@"'
    arguments = [str(tmp_path / "disk"), str(reserve), json.dumps(manifest()), *map(str, frees)]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, arguments[0], sys.executable, "-m", "tests.machine.filling", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if "unshare failed" in done.stderr or "permission denied" in done.stderr:
        pytest.skip(f"no mount namespace here ({done.stderr.strip()}): run make test where root may mount")
    assert done.returncode == 0, done.stderr
    return {int(free): result for free, result in json.loads(done.stdout).items()}


def holds_all_that_was_safe(result: dict[str, Any]) -> bool:
    counters, pages = result["counters"], result["pages"]
    prefixes = counters == list(range(len(counters))) and pages == list(range(1, len(pages) + 1))
    return prefixes and min(len(counters), len(pages)) >= result["safe"] > 0


@needs_mounts
def test_a_full_disk_ends_a_recording_with_a_trace_of_all_that_was_safe(tmp_path: Path) -> None:
    """Wherever it is full: in the journal or in a segment; the room kept back is enough to finish with."""
    for free, result in filled(tmp_path, [(3 << 20) + 37_000 * i for i in range(8)], 1 << 20).items():
        assert holds_all_that_was_safe(result), free
        assert (result["recovered"], result["complete"], result["ended"]) == (False, False, "the disk was full"), free
        assert result["left"] == [], free
        (said,) = result["said"]
        assert "No space left on device; the recording ended after 23 s and is saved up to there" in said


@needs_mounts
def test_where_even_the_room_kept_back_is_gone_the_journal_stays_and_is_recovered(tmp_path: Path) -> None:
    results = filled(tmp_path, [(1 << 20) + 61_000 * i for i in range(4)], 4096)
    for free, result in results.items():
        assert holds_all_that_was_safe(result), free
        assert result["complete"] is False, free
        if result["recovered"]:
            assert "make room there, then `directmap-collect recover" in result["said"][0]
    assert any(result["recovered"] for result in results.values()), "the disk was never as full as that"


@needs_mounts
def test_a_disk_without_room_to_end_with_is_refused_before_recording(tmp_path: Path) -> None:
    script = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'
    code = (
        "import json, sys; from pathlib import Path; from collect.journal import TraceWriter\n"
        "try: TraceWriter(Path(sys.argv[1]) / 'trace', {})\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(*Path(sys.argv[1]).iterdir())"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(tmp_path), sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    said, left = done.stdout.split("\n")[:2]
    assert said.startswith("HostError") and "No space left on device; 32 MiB must be free to begin with" in said
    assert left == "", "nothing is left behind"


# --- whose files -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user: run make test as root")
def test_everything_belongs_to_whoever_called_sudo_and_is_for_them_only(tmp_path: Path, monkeypatch: Any) -> None:
    """The folders that were made, the journal while it is written, and what was recovered from it."""
    monkeypatch.setenv("SUDO_UID", "12345")
    monkeypatch.setenv("SUDO_GID", "54321")

    def strangers() -> list[str]:
        found = []
        for path in [tmp_path / "made", *(tmp_path / "made").rglob("*")]:
            status = path.stat()
            if (status.st_uid, status.st_gid) != (12345, 54321):
                found.append(f"{path}: of {status.st_uid}:{status.st_gid}")
            if path.is_file() and status.st_mode & 0o777 != 0o600:
                found.append(f"{path}: {status.st_mode:o}")
        return found

    directory = tmp_path / "made" / "too" / "trace"
    writer = TraceWriter(directory, manifest(), reserve_bytes=4096)
    writer.append("counters", rows("counters", 0, 5))
    writer.roll()
    writer.append("counters", rows("counters", 5, 5))
    writer.sync()
    assert len(list((directory / "journal").iterdir())) == 4, "lock, manifest, reserve, one part"
    assert strangers() == []
    writer.abandon()
    recover(directory)
    assert strangers() == []
    assert open_trace(directory).n_rows("counters") == 10
