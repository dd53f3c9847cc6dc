"""Losses and the conclusions that they put in doubt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analyze.losses import ARRAY_PAGES, CLASSES, CONCLUSIONS, Doubt, in_doubt, loss_of, lost_for
from analyze.report.checks import checks, verdict
from analyze.verify import verify
from collect.program import GROUPS
from collect.records import LOSSES
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import with_manifest

ROOT = Path(__file__).parents[2]
OF_PAGES = {
    "pages_ring_full",
    "pages_programs_not_run",
    "unreported_programs_not_run",
    "bulk_allocations_not_followed",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 23, scale=0.1)


def test_every_class_that_the_recorder_counts_has_a_meaning() -> None:
    text = (ROOT / "collect/recorder.py").read_text()
    [of_recorder] = re.findall(r"def _losses\(self\).*?\n\n", text, re.DOTALL)
    counted = {*LOSSES, *re.findall(r'"(\w+)": self', of_recorder)}
    counted |= {f"{group}_programs_not_run" for group in GROUPS if group not in ("exits", "spare", "vfree")}
    assert len(counted) == 20
    assert set(CLASSES) == counted | {ARRAY_PAGES}


def test_every_conclusion_has_words() -> None:
    assert set(CONCLUSIONS) == set(Doubt)


def test_only_page_events_are_in_doubt_where_only_page_events_were_lost() -> None:
    assert {name for name, loss in CLASSES.items() if loss.doubt == Doubt.PAGES} == OF_PAGES
    losses = dict.fromkeys(OF_PAGES, 2) | {"changes_ring_full": 0}
    assert in_doubt(losses) == Doubt.PAGES
    assert lost_for(losses, Doubt.MAP) == 0 and lost_for(losses, Doubt.PAGES) == 8


def test_a_class_from_a_newer_recorder_puts_everything_in_doubt() -> None:
    assert in_doubt({"gremlins": 1}) == Doubt.MAP | Doubt.WHO | Doubt.REGIONS | Doubt.PAGES
    assert loss_of("gremlins").text == "gremlins"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_exact_is_about_the_map_and_what_else_was_lost_stands_beside_it(
    name: str, source: Path, tmp_path: Path
) -> None:
    trace = open_trace(with_manifest(source, tmp_path / "t", losses={name: 3}))
    found = verify(trace)
    shown = found.to_json()
    of_map = bool(CLASSES[name].doubt & Doubt.MAP)
    assert found.exact is not of_map
    assert (shown["lost_events"], shown["lost_events_of_map"]) == (3, 3 if of_map else 0)
    assert shown["losses"] == {name: 3}
    [lost] = [check for check in checks(shown, trace.manifest) if check.name == "Events were lost"]
    assert all((text in lost.text) is bool(CLASSES[name].doubt & doubt) for doubt, text in CONCLUSIONS.items())
    assert "3" in verdict(shown).text
