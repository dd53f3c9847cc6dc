"""Real kernels that met the rules: every small recording is exact, and docs/rules.md says what each has met."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from analyze.reconstruct import Rebuild, rebuild
from analyze.rule_names import Rule
from analyze.verify import verify
from collect.schema import ChangeKind, Level, Pte
from collect.trace import open_trace
from tests.machine.rewrite import with_cell, without_rows
from tests.rules_table import DOCUMENT, PLACES, RECORDINGS, counts, written

RULES = [path for path in RECORDINGS if path.name.startswith("rules-")]
SMALL = [path for path in RECORDINGS if path.parent.name == "recordings"]
MAX_BYTES, MAX_BYTES_EACH = 2_000_000, 300_000


@cache
def rebuilt_of(recording: Path) -> Rebuild:
    return rebuild(open_trace(recording))


@pytest.mark.parametrize("recording", SMALL, ids=lambda path: path.name)
def test_it_is_exact(recording: Path) -> None:
    found = verify(open_trace(recording), rebuilt_of(recording)).to_json()
    zeros = ("level_mismatches", "attribute_mismatches", "rule_mismatches", "lost_events", "unfinished_calls")
    assert {key: found[key] for key in zeros} == dict.fromkeys(zeros, 0)
    assert found["splits_observed"]["leaves_that_differ"] == 0
    assert found["exact"]
    assert found["pages_compared"] > 1_000_000


def test_they_are_small_and_say_where_they_came_from() -> None:
    sizes = [sum(file.stat().st_size for file in path.iterdir()) for path in SMALL]
    assert max(sizes) <= MAX_BYTES_EACH
    assert sum(sizes) <= MAX_BYTES
    assert all((path / "PROVENANCE.md").exists() for path in SMALL)


def test_the_document_holds_what_the_recordings_have_met() -> None:
    """Golden counts: write them anew with `python3 -m tests.rules_table`, and look at what changed."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text == written(text)


def test_every_rule_has_a_place_in_our_code_and_a_test() -> None:
    assert set(PLACES) == set(Rule)
    top = Path(__file__).resolve().parents[1]
    named = {name for _, tests in PLACES.values() for name in tests.split(", ")}
    assert [name for name in named if not (top / name).exists()] == []


def test_only_what_is_named_here_was_never_seen_on_a_real_kernel() -> None:
    """The direct map of the kernel's rodata is no 1G leaf."""
    never = {rule.name for rule in Rule if not any(counts(path)[rule] for path in RECORDINGS)}
    assert never == {"RODATA_1G", "STATIC_1G"}


@pytest.mark.parametrize("recording", RULES, ids=lambda path: path.name)
def test_a_call_that_failed_halfway_left_what_it_had_done(recording: Path) -> None:
    rebuilt = rebuilt_of(recording)
    changes = rebuilt.changes
    failed = np.flatnonzero(changes.direct & (changes.columns["ret"] != 0))
    assert (changes.columns["ret"][failed] == -12).sum() >= 3, "ENOMEM"
    assert (rebuilt.observed.left_level == Level.G1).sum() >= 1, "a 1G leaf split, and its 2M leaf not"
    halfway = failed[changes.n_done[failed] > 0]
    assert len(halfway) >= 1
    assert (rebuilt.prediction.n_changed[halfway] > 0).any()


@pytest.mark.parametrize("recording", RULES, ids=lambda path: path.name)
def test_large_leaves_that_are_not_present_have_no_pat(recording: Path) -> None:
    """Their entries hold an inverted address where PAT was: a recorder that takes it for PAT is not exact here."""
    rows = open_trace(recording).table("changes").to_pandas()
    absent = rows[(rows["level_first"] >= Level.M2) & (rows["attrs_first"].to_numpy() & np.uint64(Pte.P) == 0)]
    assert len(absent) >= 2
    assert (absent["attrs_first"].to_numpy() & np.uint64(Pte.PAT) == 0).all()
    assert (absent["attrs_first"].to_numpy() & np.uint64(Pte.G) == 0).all()


@pytest.mark.parametrize("recording", [path for path in RULES if "7.2" in path.name], ids=lambda path: path.name)
def test_what_a_kernel_put_back_may_be_put_back_by_the_rules_and_nothing_else(recording: Path, tmp_path: Path) -> None:
    rebuilt = rebuilt_of(recording)
    columns = rebuilt.changes.columns
    collapses = np.flatnonzero((columns["kind"] == ChangeKind.COLLAPSE) & rebuilt.changes.direct)
    assert len(collapses) >= 2
    assert (rebuilt.prediction.level_first[collapses] >= Level.M2).all()
    assert (rebuilt.prediction.level_first[collapses] == Level.G1).any()
    # Another attribute on one page of the first of them, and the rules refuse; the probe says otherwise, and verify both.
    first = int(rebuilt.changes.first_pfn[collapses[0]])
    touching = np.flatnonzero(
        rebuilt.changes.direct
        & (rebuilt.changes.first_pfn // 512 == first // 512)
        & (rebuilt.changes.exit_ns <= columns["ts_ns"][collapses[0]])
        & (rebuilt.changes.n_pages == 1)
        & (columns["mask_clr"] != 0)
    )
    other = with_cell(recording, tmp_path / "t", "changes", "mask_clr", int(touching[-1]), 0)
    told = verify(open_trace(other)).to_json()
    assert not told["exact"]
    refused = [row for row in told["rule_mismatch_list"] if row["source"].startswith("collapse_pmd_page")]
    assert refused
    assert refused[0]["change"]["api"] == "large entry put back"


def test_a_leaf_that_maps_rodata_writable_is_mended_as_it_is_split() -> None:
    """As nothing else would have: what was asked for, a soft bit, leaves RW alone."""
    [recording] = [path for path in SMALL if path.name.startswith("static-")]
    rebuilt = rebuilt_of(recording)
    first, end = rebuilt.trace.manifest["memory"]["rodata"]
    frames = rebuilt.splits.loc[rebuilt.splits["level"] == Level.M2, "pfn"].tolist()
    assert len(frames) == 2
    for frame in frames:
        assert first <= frame and frame + 512 <= end
        pages = np.arange(frame, frame + 512)
        assert (rebuilt.start.map.attrs_of(pages) & np.uint64(Pte.RW) != 0).all()
        assert (rebuilt.final.attrs_of(pages) & np.uint64(Pte.RW) == 0).all()


@pytest.mark.parametrize("recording", SMALL, ids=lambda path: path.name)
def test_a_change_taken_out_is_noticed(recording: Path, tmp_path: Path) -> None:
    rebuilt = rebuilt_of(recording)
    split = rebuilt.splits.loc[rebuilt.splits["level"] == Level.M2, "row"]
    row = int(split.iloc[len(split) // 2])
    assert not verify(open_trace(without_rows(recording, tmp_path / "t", "changes", [row]))).exact
