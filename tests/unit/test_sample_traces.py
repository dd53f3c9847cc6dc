"""Every recording in sample_traces/ is exact, rich enough to show something, small, and says where it came from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from analyze.attribute import attribute
from analyze.reconstruct import Rebuild, rebuild
from analyze.verify import verify
from collect.schema import Level
from collect.trace import open_trace
from tests.machine.rewrite import without_rows

SAMPLES = sorted(path for path in Path(__file__).parents[2].joinpath("sample_traces").glob("*") if path.is_dir())
MAX_BYTES = 3_000_000
PROVENANCE = "PROVENANCE"

pytestmark = pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.name)


@cache
def rebuilt_sample(sample: Path) -> Rebuild:
    return rebuild(open_trace(sample))


def test_it_is_exact(sample: Path) -> None:
    found = verify(open_trace(sample), rebuilt_sample(sample)).to_json()
    zeros = ("level_mismatches", "attribute_mismatches", "rule_mismatches", "lost_events", "unfinished_calls")
    assert {key: found[key] for key in zeros} == dict.fromkeys(zeros, 0)
    assert found["exact"]


def test_a_change_that_split_a_frame_is_missed(sample: Path, tmp_path: Path) -> None:
    rebuilt = rebuilt_sample(sample)
    splits = rebuilt.splits[rebuilt.splits["level"] == Level.M2]
    for at in (0, len(splits) // 2, len(splits) - 1):
        cut = without_rows(sample, tmp_path / str(at), "changes", [int(splits["row"].iloc[at])])
        found = verify(open_trace(cut))
        assert not found.exact
        assert found.difference is not None
        assert found.rule_count + found.difference.level + found.difference.attributes > 0


def test_others_than_ourselves_split_enough_to_be_worth_looking_at(sample: Path) -> None:
    splits = attribute(open_trace(sample), rebuilt_sample(sample)).splits
    others = splits[splits["user"] != "collector"]
    assert (others["level"] == Level.M2).sum() >= 50
    assert (others["level"] == Level.G1).sum() >= 1
    if "churn" in sample.name:
        per_user = others["user"].value_counts()
        assert (per_user.drop("other", errors="ignore") >= 5).sum() >= 3


def test_it_is_small_and_says_where_it_came_from(sample: Path) -> None:
    assert sum(file.stat().st_size for file in sample.iterdir()) <= MAX_BYTES
    assert any(file.name.upper().startswith(PROVENANCE) for file in sample.iterdir())
