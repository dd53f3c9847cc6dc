"""What a page shows of a replay: the same number of a policy wherever it stands, and two numbers told apart where there are two."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from analyze.plots.style import inline_svg
from replay.judgement import frames_apart, judge
from replay.judgement_words import between, headline
from replay.page_view import frames_split, judged_view, replay_view
from replay.plots_saved import puts_together, saved_figure
from replay.results import PolicyResult
from replay.run import run_policies

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"


@pytest.fixture(scope="module")
def results() -> Sequence[PolicyResult]:
    return run_policies(SAMPLE, ("none", "gfp-unmapped", "none+merge"))


def test_a_policy_that_merges_has_both_its_numbers_in_tables_and_another_name_at_its_bar(
    results: Sequence[PolicyResult],
) -> None:
    none, _, merged = results
    assert [puts_together(r) for r in results] == [False, False, True]
    assert frames_split(none) == between(none.split_2m) == "141"
    assert frames_split(merged) == "141 (114 at once)"
    labels = re.findall(r">([^<>]+)</text>", inline_svg(saved_figure(results), "x", ""))
    assert "none+merge, at once" in labels and "none+merge" not in labels
    assert {"none", "gfp-unmapped", between(frames_apart(merged))} <= set(labels)
    rows = {row.name: row.split_2m for row in replay_view(results, judge(results)).policies}
    assert rows == {r.policy: frames_split(r) for r in results}


def test_in_short_an_answer_is_its_verdict_and_two_numbers(results: Sequence[PolicyResult]) -> None:
    found = judge(results)
    assert found is not None
    assert judged_view(found).short == f"{headline(found)}: 141 → {between(frames_apart(results[1]))}"


def test_what_was_not_replayed_has_no_numbers(results: Sequence[PolicyResult]) -> None:
    found = judge(results[:1])
    assert found is not None
    assert judged_view(found).short == headline(found)
