"""The arithmetic of the benchmark. That it measures, `make bench-collect` shows; no time is tested here."""

from __future__ import annotations

import itertools
import struct
from pathlib import Path

import pytest

from tests.bench import perf_data
from tests.bench.build import generate
from tests.bench.contestants import Recorded
from tests.bench.costs import cost_per_event_ns, growth, slope_per_minute, spread
from tests.bench.markdown import markdown
from tests.bench.result import figures, goals
from tests.bench.rounds import Run


def test_an_event_costs_half_of_what_a_page_takes_longer() -> None:
    # 500,000 pages/s are 2 us a page, 1,000,000 are 1 us: 1 us more for two events.
    assert cost_per_event_ns(500_000, 1_000_000) == pytest.approx(500)


def test_processes_side_by_side_each_wait_for_their_own_events() -> None:
    assert cost_per_event_ns(1_000_000, 2_000_000, processes=2) == pytest.approx(cost_per_event_ns(500_000, 1_000_000))


def test_a_spread_holds_median_and_extremes() -> None:
    found = spread([3.0, 1.0, 2.0, 10.0, 4.0])
    assert (found.median, found.smallest, found.largest, found.rounds) == (3.0, 1.0, 10.0, 5)


def test_five_rounds_enclose_the_median_between_extremes_with_fifteen_sixteenths() -> None:
    found = spread([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.low, found.high, found.coverage) == (1.0, 5.0, pytest.approx(15 / 16))


def test_twenty_rounds_leave_out_five_at_either_end() -> None:
    """The table of the sign test: n = 20 at 95 % are the 6th and the 15th, with 95.86 %."""
    found = spread([float(i) for i in range(1, 21)])
    assert (found.low, found.high) == (6.0, 15.0)
    assert found.coverage == pytest.approx(0.9586, abs=1e-4)


@pytest.mark.parametrize("n", [6, 7, 9])
def test_the_coverage_is_what_all_signs_give(n: int) -> None:
    """Each value is above or below the true median with equal chance: counted over all 2^n ways."""
    found = spread([float(i) for i in range(n)])
    k = int(found.low) + 1
    inside = sum(k <= sum(signs) <= n - k for signs in itertools.product((0, 1), repeat=n))
    assert found.coverage == pytest.approx(inside / 2**n)
    assert found.coverage >= 0.95


def test_one_round_says_nothing_about_the_median_and_none_is_an_error() -> None:
    assert spread([7.0]).coverage == 0
    with pytest.raises(ValueError, match="no round"):
        spread([])


def test_growth_looks_at_the_peaks_of_a_sawtooth() -> None:
    assert growth([50, 90, 10, 99, 50, 100, 10, 60, 100]) == pytest.approx(0)
    assert growth([1, 1, 1, 100, 100, 100, 150, 120, 110]) == pytest.approx(0.5)


def test_a_slope_is_per_minute() -> None:
    assert slope_per_minute([0, 1, 2, 3], [10, 12, 14, 16]) == pytest.approx(120)
    assert slope_per_minute([0], [10]) == 0


def perf_file(path: Path, records: list[bytes]) -> Path:
    data = b"".join(records)
    path.write_bytes(
        struct.pack("<8s6Q", b"PERFILE2", 104, 128, 104, 0, 104, len(data)).ljust(104, b"\0") + data + b"tail"
    )
    return path


def record(kind: int, body: bytes) -> bytes:
    return struct.pack("<IHH", kind, 0, 8 + len(body)) + body


def test_samples_and_losses_of_perf_are_counted(tmp_path: Path) -> None:
    sample, lost, lost_samples = (
        record(9, bytes(96)),
        record(2, struct.pack("<QQ", 1, 30)),
        record(13, struct.pack("<Q", 7)),
    )
    file = perf_file(tmp_path / "perf.data", [sample, record(3, bytes(56)), sample, lost, lost_samples, sample])
    assert perf_data.count(file) == (3, 37)


def test_a_file_that_is_not_perfs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "perf.data").write_bytes(bytes(200))
    with pytest.raises(ValueError, match=r"not a perf\.data file"):
        perf_data.count(tmp_path / "perf.data")


def test_the_build_is_the_same_work_every_time(tmp_path: Path) -> None:
    for name in ("once", "again"):
        generate(tmp_path / name, 3)
    once, again = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("once", "again"))
    assert once == again
    assert len({*once.values()}) == len(once) == 4


def run(contestant: str, number: int, seconds: float, *, load: str = "populate-and-drop", lost: int = 0) -> Run:
    """A run of a million pages, its two million events on 18 MB; a build is `seconds` long."""
    events = 0 if contestant == "untraced" else 2_000_000 - lost
    recorded = Recorded(events, lost, 9 * events)
    pages = 0 if load == "build" else 1_000_000
    return Run(load, contestant, number, pages, seconds, seconds, 0.5, 0.1, 0.02, recorded)


def test_each_run_is_held_against_the_untraced_one_of_its_round() -> None:
    runs = [run("untraced", 1, 1.0), run("ours-all", 1, 1.2), run("ours-all", 2, 2.6), run("untraced", 2, 2.0)]
    found = figures(runs, {"populate-and-drop": 1})["populate-and-drop"]["ours-all"]
    assert found["slowdown"]["smallest"] == pytest.approx(0.2)
    assert found["slowdown"]["largest"] == pytest.approx(0.3)
    assert found["cost_ns"]["smallest"] == pytest.approx(100)
    assert found["bytes_per_event"] == pytest.approx(9)


def reached(runs: list[Run]) -> dict[str, bool | None]:
    return {goal["goal"]: goal["reached"] for goal in goals(figures(runs, {"populate-and-drop": 1, "build": 2}), None)}


def test_goals_are_reached_or_not_and_what_was_not_measured_is_neither() -> None:
    good = [run("untraced", 1, 1.0), run("ours-all", 1, 1.2), run("perf", 1, 1.6), run("bpftrace", 1, 2.0)]
    rate, all_cpus, build, perf, bpftrace, complete, size, memory, flat = reached(good).values()
    assert (rate, perf, bpftrace, size) == (True, True, False, True)
    assert (all_cpus, build, complete, memory, flat) == (None,) * 5


def test_one_lost_event_misses_the_goal() -> None:
    assert next(iter(reached([run("untraced", 1, 1.0), run("ours-all", 1, 1.2, lost=1)]).values())) is False


@pytest.mark.parametrize(("allocated", "expected"), [(1_000_000, True), (1_002_000, True), (999_999, False)])
def test_a_page_of_the_load_that_the_trace_does_not_hold_is_noticed(allocated: int, expected: bool) -> None:
    ours = run("ours-all", 1, 1.2)
    ours.recorded.load_allocated, ours.recorded.load_freed = allocated, 1_000_000
    assert list(reached([run("untraced", 1, 1.0), ours]).values())[5] is expected


def test_the_build_may_be_slowed_by_twelve_in_a_thousand() -> None:
    for seconds, expected in ((10.11, True), (10.13, False)):
        runs = [run("untraced", 1, 10.0, load="build"), run("ours-default", 1, seconds, load="build")]
        assert list(reached(runs).values())[2] is expected


def test_the_table_names_everyone_who_ran() -> None:
    runs = [run("untraced", 1, 1.0), run("ours-all", 1, 1.2, lost=5)]
    found = figures(runs, {"populate-and-drop": 1})
    text = markdown(
        {
            "machine": {
                "cpu": "a CPU", "n_cpus": 2, "memory_gib": 4, "hypervisor": "none", "emulated": False, "kernel": "6.1",
                "date": "2026-01-01T00:00", "commit": "abc", "tools": {"perf": None},
            },
            "command": "make bench-collect",
            "settings": {"seconds": 1.0, "megabytes": 64, "files": 10, "n_cpus": 2, "rounds": 1},
            "titles": {"untraced": "untraced", "ours-all": "directmap, --pages all"},
            "refused": {"trace-cmd record": "not permitted"},
            "goals": goals(found, None),
            "figures": found,
            "memory": None,
            "left_out": [{"load": "populate-and-drop", "round": 2}],
        }
    )  # fmt: skip
    assert "| directmap, --pages all | 833,333 | 20.0% | 20.0% | 100 |" in text
    assert "* trace-cmd record: not permitted" in text
    assert "5 (0.0%)" in text
    assert "1 rounds; 1 more were left out, since others used the CPUs more" in text
