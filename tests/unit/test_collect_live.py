"""What a recording shows while it runs: a table on a terminal, one plain line elsewhere, and never too often."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest

from collect import live
from collect.live import NoView, OneLine, Status, Table, one_line, picture, view_for
from collect.records import CHANGE


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status() -> Status:
    return Status(
        seconds=23,
        rows={"changes": 1000, "regions": 50, "pages": 123_456},
        lost={"changes_ring_full": 0, "pages_ring_full": 17},
        levels_kb={"DirectMap4k": 1 << 19, "DirectMap2M": 5 << 20, "DirectMap1G": 2 << 20},
        splits=Counter({"modprobe": 5}),
        recent_splits=Counter({"modprobe": 2, "evil\x1b[31m": 1}),
        pages_per_second=98_765,
        trace_bytes=3 << 20,
        page_sample=4,
        overhead_percent=1.25,
    )


def rendered(shown: Status, width: int = 100) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(picture(shown))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_shows_levels_users_rates_losses_and_size() -> None:
    text = rendered(status())
    for part in (
        "23 s, 3.0 MiB on disk", "1G 2.00 GiB", "2M 5.00 GiB", "4K 0.50 GiB", "1,000", "123,456, 98,765/s (one block in 4)",
        "1.25 % of all CPUs' time", "pages_ring_full 17",
    ):  # fmt: skip
        assert part in text, part
    row = next(line for line in text.splitlines() if "modprobe" in line)
    assert row.split() == ["modprobe", "2", "7"]
    assert "changes_ring_full" not in text, "what lost nothing is not listed"


def test_a_recording_that_will_end_tells_of_how_long() -> None:
    shown = status()
    shown.duration = 90
    assert "23 of 90 s, 3.0 MiB on disk" in rendered(shown)
    assert one_line(shown).startswith("23 of 90 s, 1G 2.00 GiB")


def test_the_name_of_a_process_cannot_control_the_terminal() -> None:
    assert "\x1b" not in rendered(status())
    assert "evil?[31m" in rendered(status())


def test_page_events_alone_show_no_levels_and_no_users() -> None:
    shown = Status(seconds=1, rows={"pages": 5}, pages_per_second=5)
    assert "direct map" not in rendered(shown) and "split" not in rendered(shown)
    assert one_line(shown) == "1 s, 5 page events (5/s), 0 lost, 0.0 MiB"


def test_splits_are_counted_by_the_process_whose_change_left_a_smaller_leaf() -> None:
    changes = np.zeros(5, CHANGE)
    changes["comm"] = [b"a", b"a", b"b", b"c", b"d"]
    changes["level_before"] = [2, 3, 2, 1, 2]
    changes["level_first"] = [1, 2, 2, 1, 0]  # split, split, not, not, gone
    shown = Status()
    shown.count_splits(changes)
    shown.count_splits(changes[:1])
    assert shown.recent_splits == Counter({"a": 3}) and shown.splits == Counter()
    shown.end_tick()
    assert shown.splits == Counter({"a": 3}) and shown.recent_splits == Counter()


def test_a_line_is_plain_and_written_over_on_a_terminal() -> None:
    terminal = Terminal()
    view = OneLine(terminal, over=True)
    view.update(status())
    view.close()
    text = terminal.getvalue()
    assert "\x1b" not in text and "\n" not in text
    assert "1G 2.00 GiB 2M 5.00 GiB 4K 0.50 GiB, 1000 changes, 8 splits" in text
    assert text.endswith("\r"), "nothing of it is left"


def test_at_most_two_refreshes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    for view, terminal in ((OneLine(first := Terminal(), over=True), first), (Table(second := Terminal()), second)):
        sizes = []
        for _ in range(100):
            now[0] += 0.1
            view.update(status())
            sizes.append(len(terminal.getvalue()))
        assert len(set(sizes)) <= 21, "100 calls in 10 seconds"
        assert len(set(sizes)) >= 15
        view.close()


def test_each_stream_gets_what_it_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    table = view_for(live=True, stream=Terminal())
    assert isinstance(table, Table)
    table.close()
    assert isinstance(view_for(live=False, stream=Terminal()), OneLine)
    assert isinstance(view_for(live=True, stream=io.StringIO()), OneLine)
    assert isinstance(view_for(live=False, stream=io.StringIO()), NoView)
    monkeypatch.setenv("NO_COLOR", "1")
    assert isinstance(view_for(live=True, stream=Terminal()), OneLine)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(live=True, stream=Terminal()), OneLine)
