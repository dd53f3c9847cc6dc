"""Snapshots between START and END against the state rebuilt for each."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analyze.analysis import analyse_trace
from analyze.commands.verify import run
from analyze.course import load_course
from analyze.health import BROKEN, health
from analyze.moments import Running, mark_moving
from analyze.report.checks import checks, verdict
from analyze.snapshots import SnapshotTable, snapshots_between
from analyze.trust import trust
from analyze.verify import verify
from analyze.words.terminal import counted
from collect.errors import TraceError
from collect.schema import Moment, Pte, Space
from collect.trace import Trace, open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_cell, without_rows

BETWEEN = 7


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 31, scale=0.3, between=BETWEEN)


def rows_of(source: Path, number: int, *, level: int = 1) -> list[int]:
    """Rows of the table of one snapshot, of the direct map and of one level."""
    rows = open_trace(source).table("snapshots").to_pandas()
    mine = (rows["snapshot"] == number) & (rows["space"] == Space.DIRECT_MAP) & (rows["level"] == level)
    return [int(row) for row in rows[mine].index]


def change_before(source: Path, number: int) -> int:
    """A row of the table of changes: the last one of the direct map that was over before a snapshot began."""
    trace = open_trace(source)
    snapshots, changes = trace.table("snapshots").to_pandas(), trace.table("changes").to_pandas()
    begin = snapshots[snapshots["snapshot"] == number]["ts_ns"].min()
    rebuilt = verify(trace)
    before = rebuilt.between[number - 3].ts_end_ns if number > 2 else 0
    mine = changes[
        (changes["space"] == Space.DIRECT_MAP)
        & (changes["ts_ns"] + changes["duration_ns"] < begin)
        & (changes["ts_ns"] > before)
        & (changes["mask_set"] != changes["mask_clr"])
        & (changes["n_done"] > 0)
    ]
    return int(mine.index[-1])


def test_each_is_exact_with_changes_before_it_and_says_what_was_read_again(source: Path) -> None:
    found = verify(open_trace(source))
    assert found.exact
    assert [check.number for check in found.between] == list(range(2, 2 + BETWEEN))
    assert [check.moment for check in found.between] == [Moment.REQUEST, Moment.PERIODIC] * 3 + [Moment.REQUEST]
    for check in found.between:
        assert check.exact and check.difference.pages > 700_000 and check.undecided == 0
        assert check.changes > 0 and check.entries > 0
        assert check.rounds == 1
    assert sum(check.frames_again or 0 for check in found.between) > BETWEEN
    shown = found.to_json()["between"]
    assert (shown["snapshots"], shown["differ"], shown["level_mismatches"]) == (BETWEEN, 0, 0)
    assert shown["fewest_changes_between_neighbours"] == min(check.changes for check in found.between)
    assert [one["frames_read_again"] for one in shown["list"]] == [check.frames_again for check in found.between]


def test_nothing_is_rebuilt_from_them(source: Path, tmp_path: Path) -> None:
    """Without them, and whatever they say, the end comes out the same."""
    rows = [
        row for number in range(2, 2 + BETWEEN) for level in (1, 2, 3) for row in rows_of(source, number, level=level)
    ]
    bare = verify(open_trace(without_rows(source, tmp_path / "t", "snapshots", rows)))
    assert bare.exact and bare.between == []
    full = verify(open_trace(source))
    assert full.difference is not None and bare.difference is not None
    assert full.difference.pages == bare.difference.pages


@pytest.mark.parametrize("number", [2, 5, 1 + BETWEEN])
def test_one_moved_page_is_found_in_its_snapshot_alone(number: int, source: Path, tmp_path: Path) -> None:
    row = rows_of(source, number)[3]
    table = open_trace(source).table("snapshots")
    wrong = with_cell(source, tmp_path / "t", "snapshots", "attrs", row, table["attrs"][row].as_py() ^ 2)
    found = verify(open_trace(wrong))
    n = table["n_leaves"][row].as_py()
    assert not found.exact
    assert [check.number for check in found.between if not check.exact] == [number]
    [check] = [check for check in found.between if not check.exact]
    assert (check.difference.level, check.difference.attributes) == (0, n)
    assert check.difference.listed[0, 0] == table["pfn"][row].as_py()


@pytest.mark.parametrize("number", [3, 6])
def test_a_change_left_out_is_missed_from_the_next_snapshot_on(number: int, source: Path, tmp_path: Path) -> None:
    row = change_before(source, number)
    found = verify(open_trace(without_rows(source, tmp_path / "t", "changes", [row])))
    assert not found.exact
    differ = [check.number for check in found.between if not check.exact]
    assert differ and differ[0] == number


def test_accessed_bits_are_counted_and_no_difference(source: Path, tmp_path: Path) -> None:
    row = rows_of(source, 3)[3]
    table = open_trace(source).table("snapshots")
    idle = with_cell(source, tmp_path / "t", "snapshots", "attrs", row, table["attrs"][row].as_py() ^ int(Pte.A))
    found = verify(open_trace(idle))
    assert found.exact
    n = table["n_leaves"][row].as_py()
    assert [check.difference.hardware_only for check in found.between] == [0, n, 0, 0, 0, 0, 0]


def test_a_frame_that_changed_while_it_was_read_is_counted_and_not_compared(source: Path, tmp_path: Path) -> None:
    """As the recorder leaves it when it gives up: the frame may hold anything."""
    trace = open_trace(source)
    changes, snapshots = trace.table("changes").to_pandas(), trace.table("snapshots")
    change = changes.loc[change_before(source, 4)]
    rows = snapshots.to_pandas()
    frame = change["pfn"] // 512
    mine = (
        (rows["snapshot"] == 4)
        & (rows["space"] == Space.DIRECT_MAP)
        & (rows["pfn"] // 512 == frame)
        & (rows["level"] == 1)
    )
    assert mine.sum() > 0
    ts, attrs = snapshots["ts_ns"].to_numpy().copy(), snapshots["attrs"].to_numpy().copy()
    ts[mine] = change["ts_ns"]
    attrs[mine] ^= np.uint64(2)
    changed = snapshots.set_column(2, snapshots.schema.field("ts_ns"), pa.array(ts))
    changed = changed.set_column(8, snapshots.schema.field("attrs"), pa.array(attrs))
    found = verify(open_trace(rewrite(source, tmp_path / "t", "snapshots", changed)))
    [check] = [check for check in found.between if check.number == 4]
    assert check.undecided == 1 and check.exact
    assert found.exact, "it proves less, and nothing is wrong"


def test_the_frames_that_moved_are_those_that_plain_python_finds(source: Path) -> None:
    """With the times of reading drawn out, so that there are many."""
    course = load_course(open_trace(source))
    changes = course.changes
    _, _, snapshot = list(snapshots_between(course.trace))[3]
    chance = np.random.default_rng(4)
    n = len(snapshot.read_from)
    read_from = snapshot.read_from - chance.integers(0, 40_000_000, n)
    read_to = snapshot.read_to + chance.integers(0, 40_000_000, n)
    plain = set()
    rows = np.flatnonzero(changes.direct)
    for row in rows.tolist():
        pages = changes.pfns[changes.pfns_start[row] : changes.pfns_start[row + 1]].tolist()
        first = int(changes.first_pfn[row])
        for page in pages or range(first, first + max(1, int(changes.n_pages[row]))):
            entry, leave = int(changes.columns["ts_ns"][row]), int(changes.exit_ns[row])
            if leave >= read_from[page // 512] and entry <= read_to[page // 512]:
                plain.add(page // 512)
    moving = np.zeros(n, np.bool_)
    arrays = (changes.first_pfn, changes.n_pages, changes.pfns, changes.pfns_start)
    mark_moving(moving, rows, changes.columns["ts_ns"], changes.exit_ns, *arrays, read_from, read_to)
    assert set(np.flatnonzero(moving).tolist()) == plain
    assert 10 < len(plain) < n // 2


def test_changes_that_ran_at_a_time_are_found_without_a_look_at_all(source: Path) -> None:
    course = load_course(open_trace(source))
    running = Running(course)
    entry, leave, direct = course.changes.columns["ts_ns"], course.changes.exit_ns, course.changes.direct
    chance = np.random.default_rng(5)
    for first in chance.integers(entry.min(), leave.max(), 50).tolist():
        last = first + int(chance.integers(0, 10_000_000))
        every = [row for row in range(len(entry)) if direct[row] and leave[row] >= first and entry[row] <= last]
        assert sorted(running.rows(first, last).tolist()) == every


def test_they_are_read_one_at_a_time_however_the_segments_cut_them(source: Path, tmp_path: Path) -> None:
    trace = open_trace(source)
    whole = [(number, moment, snapshot.map.counts()) for number, moment, snapshot in snapshots_between(trace)]
    table = trace.table("snapshots")

    slices = [table.slice(at, 97) for at in range(0, len(table), 97)]
    trace.batches = lambda name, columns, n_threads=2: (  # type: ignore[method-assign]
        part.select(columns) for part in slices
    )
    cut = [(number, moment, snapshot.map.counts()) for number, moment, snapshot in snapshots_between(trace)]
    assert cut == whole and len(whole) == BETWEEN
    kept = SnapshotTable(trace).column("moment")
    assert set(kept) == {Moment.BEFORE_ATTACH, Moment.START, Moment.END, Moment.AFTER_DETACH}


def with_snapshots(source: Path, table: pa.Table) -> Trace:
    """The trace with these rows of snapshots, in an order that our writer would never leave."""
    trace = open_trace(source)
    batches = trace.batches
    trace.batches = lambda name, columns, n_threads=2: (  # type: ignore[method-assign]
        iter([table.select(columns)]) if name == "snapshots" else batches(name, columns, n_threads)
    )
    return trace


def renumbered(table: pa.Table, old: list[int], new: list[int]) -> pa.Table:
    numbers = table["snapshot"].to_numpy().copy()
    for was, number in zip(old, new, strict=True):
        numbers[table["snapshot"].to_numpy() == was] = number
    return table.set_column(0, table.schema.field("snapshot"), pa.array(numbers, pa.uint32()))


def test_snapshots_out_of_order_are_refused(source: Path) -> None:
    table = open_trace(source).table("snapshots")
    with pytest.raises(TraceError, match="number 3 comes after 4"):
        verify(with_snapshots(source, renumbered(table, [3, 4], [4, 3])))
    late = renumbered(table, [3], [90])
    late = late.take(np.argsort(late["snapshot"].to_numpy(), kind="stable"))
    with pytest.raises(TraceError, match=r"snapshot 90 \(PERIODIC\) was read before the one before it"):
        verify(with_snapshots(source, late))


def printed(trace: Path) -> tuple[int, str]:
    out = io.StringIO()
    with redirect_stdout(out):
        status = run(trace, as_json=False)
    return status, out.getvalue()


def test_verify_prints_one_line_for_all_and_those_that_differ(source: Path, tmp_path: Path) -> None:
    status, text = printed(source)
    found = verify(open_trace(source))
    changes = sum(check.changes for check in found.between)
    assert status == 0
    assert f"  between   {BETWEEN} snapshots, {changes:,} changes before them: 0 pages wrong\n" in text
    again = sum(check.frames_again or 0 for check in found.between)
    assert f"{again:,} 2M frames ({again * 512:,} pages) changed meanwhile, read again\n" in text
    row = rows_of(source, 5)[3]
    attrs = open_trace(source).table("snapshots")["attrs"][row].as_py()
    status, text = printed(with_cell(source, tmp_path / "t", "snapshots", "attrs", row, attrs ^ 2))
    assert status == 1
    assert "  snapshot 5 (periodic, " in text and "0 wrong in level, " in text
    assert all(len(line) < 80 and line.isascii() for line in text.splitlines())


def test_a_difference_between_the_ends_alone_breaks_the_health_and_is_named_where_exact_would_stand(
    source: Path, tmp_path: Path
) -> None:
    row = rows_of(source, 5)[3]
    table = open_trace(source).table("snapshots")
    n = table["n_leaves"][row].as_py()
    trace = open_trace(
        with_cell(source, tmp_path / "t", "snapshots", "attrs", row, table["attrs"][row].as_py() ^ int(Pte.RW))
    )
    analysis = analyse_trace(trace)
    found = health(trace, analysis)
    assert found.exact is False and found.verdict == BROKEN
    words = f"{n:,} pages in 1 of {BETWEEN} snapshots in between are not as start and changes say"
    assert found.why == [words]
    assert next(one for one in found.conclusions if "state of the direct map" in one.text).why == [words]
    assert trust(verify(trace, analysis.rebuilt)).map == (
        f"in doubt: {counted(n, 'page')} unlike the page tables in between (see verify)"
    )


def test_a_report_says_it_too(source: Path) -> None:
    trace = open_trace(source)
    shown = verify(trace).to_json()
    [check] = [check for check in checks(shown, trace.manifest) if check.name == "The state in between"]
    assert check.state == "good" and f"{BETWEEN} snapshots while the recording ran" in check.text
    total = shown["pages_compared"] + shown["between"]["pages_compared"]
    assert f"{total:,} pages" in verdict(shown).text
