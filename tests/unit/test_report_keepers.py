"""What keeps frames split, on the page: our recorder has its row, and the numbers of all tables and sentences add up."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from analyze.analysis import analyse
from analyze.report import keepers
from analyze.report.keepers import cause_text, keepers_view, states_text
from analyze.report.page import KeepersView
from analyze.report.users import users, users_note
from analyze.who import Who, who
from analyze.words.who import elsewhere, elsewhere_text

SAMPLES = Path(__file__).parents[2] / "sample_traces"
NAMES = ("5.10-bpf", "6.1-churn", "7.2-churn")


@pytest.fixture(scope="module", params=NAMES)
def told(request: pytest.FixtureRequest) -> tuple[str, Who, KeepersView, int]:
    """Name, `who`, the view with every cause in it, and how many special pages the table of users holds."""
    analysis = analyse(SAMPLES / request.param)
    found = who(analysis.rebuilt, analysis.attribution)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keepers, "MAX_CAUSES", 1000)
        view = keepers_view(found)
    return str(request.param), found, view, sum(integer(user.held) for user in users(analysis))


def integer(text: str) -> int:
    return int(text.replace(",", ""))


def counts(text: str, pattern: str) -> int:
    """Sum of the numbers in front of a pattern."""
    return sum(integer(n) for n in re.findall(rf"([\d,]+) {pattern}", text))


def test_our_recorder_has_a_row_where_it_keeps_a_frame(told: tuple[str, Who, KeepersView, int]) -> None:
    name, found, view, _ = told
    expected = {"5.10-bpf": ("3", "3", "22"), "6.1-churn": ("2", "2", "13"), "7.2-churn": None}[name]
    assert (view.own and (view.own.frames, view.own.alone, view.own.pages)) == expected
    assert (view.own is not None) is (found.kept_by("own")[0] > 0)
    assert not any("recorder" in row.cause or "attaching" in row.cause for row in view.rows)
    if view.own is not None:
        assert view.own.key == "collector" and view.own.cause.startswith("our recorder")


def test_pages_of_all_rows_are_those_that_the_sentence_counts(told: tuple[str, Who, KeepersView, int]) -> None:
    _, found, view, _ = told
    rows = [*view.rows, *([view.own] if view.own else [])]
    assert sum(integer(row.pages) for row in rows) == counts(states_text(found), "pages unlike")


def test_special_pages_of_users_of_earlier_and_of_attaching_are_all_there_are(
    told: tuple[str, Who, KeepersView, int],
) -> None:
    _, found, view, of_users = told
    note = users_note(found)
    before, ours = counts(note, "are from before the recording"), counts(note, "came while our recorder attached")
    assert of_users + before + ours == int((~found.special["residue"]).sum())
    outside = counts(note, "of them in a frame that never was one entry")
    assert outside == counts(states_text(found), "more such pages?") == elsewhere(found, found.special)["never_whole"]
    earlier = sum(integer(row.pages) for row in view.rows if row.cause.startswith("made before the recording"))
    assert earlier + outside == before
    assert ours == (integer(view.own.pages) if view.own else 0)


def test_on_6_1_the_two_numbers_of_who_are_reconciled() -> None:
    analysis = analyse(SAMPLES / "6.1-churn")
    found = who(analysis.rebuilt, analysis.attribution)
    live = found.special[~found.special["residue"]]
    assert (len(live), int(live["kept"].sum())) == (1078, 1075)
    assert elsewhere_text(found, live) == " (3 of them in a frame that never was one entry)"
    assert elsewhere_text(found, live[live["kept"]]) == ""
    assert "19 are kept so by 1,075 pages unlike the rest of their frame" in states_text(found)
    assert "2 never were one entry, with 3 more such pages." in states_text(found)
    assert "1,045 are from before the recording (3 of them in a frame that never was one entry)" in users_note(found)


def test_pages_in_frames_all_alike_are_told_apart_too() -> None:
    analysis = analyse(SAMPLES / "7.2-churn")
    found = who(analysis.rebuilt, analysis.attribution)
    frames = found.frames.assign(state=np.where(found.frames["state"] == "never_whole", "alike", found.frames["state"]))
    found.frames = frames
    assert elsewhere_text(found, found.special) == " (3 of them in a frame whose pages are all alike)"


def test_the_g_bit_is_spelled_out() -> None:
    analysis = analyse(SAMPLES / "6.1-churn")
    assert "by no page, but some lack the global bit (G)" in states_text(who(analysis.rebuilt, analysis.attribution))


def test_what_came_while_we_attached_is_called_ours() -> None:
    assert cause_text("before", "while attaching") == "our recorder, from attaching"
    assert cause_text("before", "kernel image") == "made before the recording: kernel image"
    assert cause_text("collector", "") == "our recorder"
