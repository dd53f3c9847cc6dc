"""The validation's books and tables: what is committed agrees with itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from replay.another_run import APART, another_run
from replay.results import Interval
from tests.vm.errors import LabError
from tests.vm.matrix_tables import with_table
from tests.vm.validation import books, published, table
from tests.vm.validation.cells import ROOT, RUNS, Recorded, Run

RUN = RUNS[0]


def outcome(measured: int, *, recorded: int = 60, run: Run = RUN) -> table.Outcome:
    foretold = {
        "recorded": recorded,
        "expected": recorded,
        "another_run": [54, 66],
        "date": "2026-01-01T10:00:00+00:00",
    }
    found = {
        "split_2m": measured,
        "predicted_in": ["0123456789ab", "2026-01-01T10:30:00+00:00"],
        "date": "2026-01-01T11:00:00+00:00",
    }
    return table.Outcome(run, foretold, found)


def test_an_interval_for_another_run_holds_the_likeliest_and_adds_both_doubts_by_their_squares() -> None:
    assert APART == 0.2
    assert another_run(Interval(100, 100)) == Interval(80, 120)
    assert another_run(Interval(85, 115, 100)) == Interval(75, 125)  # hypot(20, 15) is 25
    assert another_run(Interval(100, 115, 100)) == Interval(80, 125)
    assert another_run(Interval(0, 0)) == Interval(0, 0)


def test_error_width_and_inside_are_shares_of_what_was_measured() -> None:
    over = outcome(50)
    assert (over.error, over.width, over.inside) == (0.2, 0.24, False)
    assert outcome(66).inside
    assert outcome(54).inside
    assert not outcome(53).inside


def test_runs_of_few_frames_are_not_counted() -> None:
    assert outcome(50).counts
    assert not outcome(49).counts
    assert "No run" in table.reached([outcome(49)])


def test_a_prediction_counts_as_blind_only_if_its_commit_is_older_than_the_recording() -> None:
    line = outcome(60)
    assert line.blind
    found = {**line.found, "predicted_in": ["0123456789ab", "2026-01-01T11:00:00+00:00"]}
    assert not table.Outcome(RUN, line.foretold, found).blind
    assert not table.Outcome(RUN, line.foretold, {**line.found, "predicted_in": None}).blind


def test_what_is_not_reached_is_said() -> None:
    words = table.reached([outcome(60), outcome(60), outcome(120)])
    assert "Not reached: runs (3 of 40), measured inside (67%" in words
    assert "Reached: median error (0.0%" in words


def test_every_run_has_both_sides_of_one_load_memory_and_seed_on_two_kernels() -> None:
    assert len({run.name for run in RUNS}) == len(RUNS)
    for run in RUNS:
        assert run.source.kernel != run.target.kernel
        assert (run.source.load, run.source.memory, run.source.seed) == (
            run.target.load,
            run.target.memory,
            run.target.seed,
        )
        assert "--aged" in run.source.argv if run.source.memory == "aged" else "--aged" not in run.source.argv


def test_a_book_grows_and_its_last_line_of_a_name_counts(tmp_path: Path) -> None:
    book = tmp_path / "docs" / "book.jsonl"
    assert books.read(book) == {}
    books.add(book, {"name": "a", "value": 1})
    books.add(book, {"name": "b", "value": 2})
    books.add(book, {"name": "a", "value": 3})
    assert [line["value"] for line in books.read(book).values()] == [3, 2]
    assert len(book.read_text().splitlines()) == 3


def test_the_table_goes_between_its_marks_and_nowhere_else() -> None:
    text = f"before\n{table.BEGIN}\nold\n{table.END}\nafter"
    assert with_table(text, r"new \1", table.BEGIN, table.END) == f"before\n{table.BEGIN}\nnew \\1\n{table.END}\nafter"
    with pytest.raises(LabError, match="lacks the marks"):
        with_table("nothing", "new", table.BEGIN, table.END)


def test_the_committed_tables_are_what_the_books_say() -> None:
    found = table.outcomes()
    assert (ROOT / "docs" / "validation.md").read_text() == table.page(found)
    readme = (ROOT / "README.md").read_text()
    assert with_table(readme, table.for_readme(found), table.BEGIN, table.END) == readme


@pytest.mark.skipif(
    shutil.which("git") is None, reason="git is not installed: sudo apt install git, in a clone of the repository"
)
def test_every_prediction_that_is_counted_was_committed_before_the_other_side_was_recorded() -> None:
    counted = [found for found in table.outcomes() if found.counts]
    for found in counted:
        assert found.blind, found.run.name
        assert found.found["exact"], found.run.name
        line = found.foretold
        shown = subprocess.run(
            ["git", "show", f"{found.found['predicted_in'][0]}:docs/validation/predicted.jsonl"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if shown.returncode != 0:
            pytest.skip("no git history here (an unpacked source archive): git clone the repository and run again")
        assert f'"name": "{line["name"]}"' in shown.stdout


def test_pages_a_split_frame_are_those_of_the_published_figures() -> None:
    rows = published.table().splitlines()
    assert "| 765 | 8.0 |" in rows[2]
    assert any("| 1,097 | 5.6 |" in row for row in rows)


def test_a_recording_names_its_own_command() -> None:
    argv = Recorded("users", "5.10", "aged", 7).argv
    assert argv[argv.index("--kernel") + 1] == "5.10"
    assert argv[-1] == "lab/validate/users-5.10-aged-7"
