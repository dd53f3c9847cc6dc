"""A diff of two moments has every page, frame and range that is mapped otherwise, and none that is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from analyze.attribute import attribute
from analyze.diff import Diff, diff
from analyze.history import History
from analyze.keepers import Makers
from analyze.reconstruct import rebuild
from collect.schema import ATTRS_HARDWARE, Level
from collect.trace import open_trace
from tests.machine import write_trace
from tests.unit.test_hotplug import plugged

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "5.10-bpf"
NAMES = np.array(["hole", "4K", "2M", "1G"])


@pytest.fixture(scope="module", params=["machine", "plugged", "removed", "5.10-bpf"])
def known(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Makers]:
    path = SAMPLE
    if request.param != "5.10-bpf":
        directory = tmp_path_factory.mktemp("machine")
        path = write_trace(directory / "trace", 43, scale=0.1)
        if request.param != "machine":
            path = plugged(path, directory / "plugged", removed=request.param == "removed")
    trace = open_trace(path)
    rebuilt = rebuild(trace)
    return History(rebuilt.course), attribute(trace, rebuilt).makers


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(parts=st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
def test_a_diff_is_what_comparing_page_by_page_finds(known: tuple[History, Makers], parts: tuple[int, int]) -> None:
    history, makers = known
    span = history.span
    moments = [span.first_ns + (span.last_ns - span.first_ns) * part // 1000 for part in sorted(parts)]
    found = diff(history, makers, *moments)
    a, b = (history.state_at(ts_ns) for ts_ns in moments)
    every = np.arange(a.first_symbolic)
    seen = ~np.uint64(ATTRS_HARDWARE)
    levels_a, levels_b = a.level_of(every), b.level_of(every)
    changed = (a.attrs_of(every) & seen != b.attrs_of(every) & seen) & (levels_a > 0) & (levels_b > 0)
    pages = [np.arange(pfn, pfn + n) for pfn, n in zip(found.pages["pfn"], found.pages["n_pages"], strict=True)]
    assert np.array_equal(np.concatenate(pages or [[]]), np.flatnonzero(changed))
    assert found.attributes["n_pages"].sum() == found.users["n_pages"].sum() == changed.sum()
    for table, size, least in ((found.frames, 512, 1), (found.ranges, 512 * 512, 3)):
        firsts_a, firsts_b = (whole(levels, size, least) for levels in (levels_a, levels_b))
        differ = firsts_a != firsts_b
        if size == 512:
            differ &= (firsts_a < Level.M2) | (firsts_b < Level.M2)
        assert (table["pfn"] // size).tolist() == np.flatnonzero(differ).tolist()
        if size == 512:
            assert table["level_from"].tolist() == NAMES[firsts_a[differ]].tolist()
            assert table["level_to"].tolist() == NAMES[firsts_b[differ]].tolist()
    assert_whose_doing(history, found, moments)


def whole(levels: np.ndarray, size: int, least: int) -> np.ndarray:
    """Level of each unit: the largest of its pages'; of a range only whether it is one leaf, a table (2) or nothing."""
    most = levels.reshape(-1, size).max(axis=1)
    return most if least == 1 else np.where(most == least, 3, np.where(most > 0, 2, 0))


def assert_whose_doing(history: History, found: Diff, moments: list[int]) -> None:
    """The row is the last change in between, in order of effect, that covers the page."""
    changes = history.course.changes
    rows = history.rows_between(*moments)
    rows = rows[changes.direct[rows]].tolist()
    for run in found.pages.sample(min(len(found.pages), 10), random_state=1).itertuples():
        covering = [row for row in rows if run.pfn in covered(changes, row)]
        assert run.row == (covering[-1] if covering else -1)
        assert (run.user == "hotplug") == (not covering)


def covered(changes, row: int) -> range | list[int]:  # type: ignore[no-untyped-def]
    done, first = int(changes.n_done[row]), int(changes.first_pfn[row])
    listed = changes.pfns[changes.pfns_start[row] : changes.pfns_start[row + 1]].tolist()
    return listed[:done] if listed else range(first, first + done)
