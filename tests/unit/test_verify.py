"""What `verify` calls exact, and that it calls nothing else so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from analyze.reconstruct import NOT_PREDICTED, rebuild
from analyze.verify import verify
from collect.schema import Moment, Space
from collect.trace import open_trace
from tests.machine import write_trace
from tests.machine.rewrite import rewrite, with_cell, with_manifest, without_rows


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 21, scale=0.1)


@pytest.fixture(scope="module")
def source_510(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 22, scale=0.1, kernel_style="5.10")


def test_json_holds_what_was_promised_and_is_strict(source: Path) -> None:
    found = verify(open_trace(source)).to_json()
    json.dumps(found, allow_nan=False)
    assert found["exact"] is True
    zeros = ("level_mismatches", "attribute_mismatches", "rule_mismatches", "lost_events", "unfinished_calls")
    assert {key: found[key] for key in zeros} == dict.fromkeys(zeros, 0)
    assert found["splits"]["agree"] is True
    assert found["unexplained"] == []


def test_the_counters_hold_the_splits_of_the_kernel_image_too(source: Path) -> None:
    splits = verify(open_trace(source)).to_json()["splits"]
    assert splits["high_mapping_2m"] == 1
    expected = splits["found_2m"] + splits["high_mapping_2m"]
    assert abs(expected - splits["counted_2m"]) <= splits["slack"]


def test_a_kernel_without_counters_makes_the_check_null_not_failed(source_510: Path) -> None:
    found = verify(open_trace(source_510)).to_json()
    assert found["exact"] is True
    assert found["splits"]["counted_2m"] is None
    assert found["splits"]["counted_1g"] is None
    assert found["splits"]["agree"] is None


def test_counters_that_disagree_make_it_not_exact(source: Path, tmp_path: Path) -> None:
    counters = open_trace(source).table("counters")
    names, values = counters["counter"].to_pylist(), counters["value"].to_pylist()
    last = max(i for i, name in enumerate(names) if name == "vmstat/direct_map_level2_splits")
    found = verify(open_trace(with_cell(source, tmp_path / "t", "counters", "value", last, values[last] + 1000)))
    assert found.to_json()["splits"]["agree"] is False
    assert not found.exact


def test_a_wrong_level_in_the_end_snapshot_is_found_and_listed(source: Path, tmp_path: Path) -> None:
    trace = open_trace(source)
    table = trace.table("snapshots")
    rows = table.to_pandas()
    large = rows[(rows["moment"] == Moment.END) & (rows["space"] == Space.DIRECT_MAP) & (rows["level"] == 2)].index[3]
    frame = table.slice(int(large), 1).to_pylist()[0]
    small = [{**frame, "level": 1, "n_leaves": 512}]
    if frame["n_leaves"] > 1:
        small.append({**frame, "pfn": frame["pfn"] + 512, "n_leaves": frame["n_leaves"] - 1})
    kept = table.take(np.setdiff1d(np.arange(len(table)), [large])).to_pylist()
    changed = table.schema.empty_table().from_pylist(kept + small, schema=table.schema)
    found = verify(open_trace(rewrite(source, tmp_path / "t", "snapshots", changed))).to_json()
    assert (found["exact"], found["level_mismatches"], found["attribute_mismatches"]) == (False, 512, 0)
    (run,) = found["unexplained"]
    assert (run["pfn"], run["n_pages"]) == (frame["pfn"], 512)
    assert (run["rebuilt_level"], run["snapshot_level"]) == (2, 1)


def test_what_the_probe_saw_otherwise_is_a_rule_mismatch_with_both_answers(source: Path, tmp_path: Path) -> None:
    trace = open_trace(source)
    changes = trace.table("changes").to_pandas()
    row = int(changes[(changes["space"] == Space.DIRECT_MAP) & (changes["level_first"] == 1)].index[-40])
    found = verify(open_trace(with_cell(source, tmp_path / "t", "changes", "level_first", row, 2)))
    shown = found.to_json()
    assert not found.exact
    assert shown["rule_mismatches"] == 1
    (mismatch,) = found.rules[~found.rules["ambiguous"]].to_dict("records")
    assert (mismatch["predicted_level"], mismatch["observed_level"]) == (1, 2)
    assert mismatch["page"] == changes["pfn"][row]
    assert mismatch["when"] == "first"


def test_losses_and_unfinished_calls_are_not_exact(source: Path, tmp_path: Path) -> None:
    lost = verify(open_trace(with_manifest(source, tmp_path / "lost", losses={"changes_ring_full": 3})))
    assert (lost.exact, lost.lost_events) == (False, 3)
    changes = open_trace(source).table("changes").to_pandas()
    row = int(changes[changes["space"] == Space.DIRECT_MAP].index[7])
    open_call = verify(open_trace(with_cell(source, tmp_path / "open", "changes", "has_exit", row, 0)))
    assert (open_call.exact, open_call.unfinished) == (False, 1)


def test_a_trace_without_an_end_is_not_exact_but_read(source: Path, tmp_path: Path) -> None:
    moments = open_trace(source).table("snapshots")["moment"].to_pylist()
    rows = [i for i, moment in enumerate(moments) if moment == Moment.END]
    found = verify(open_trace(without_rows(source, tmp_path / "t", "snapshots", rows))).to_json()
    assert (found["exact"], found["end_snapshot"], found["pages_compared"]) == (False, False, 0)


def test_present_bits_inside_kfence_s_pool_are_not_compared_but_counted(source: Path, tmp_path: Path) -> None:
    trace = open_trace(source)
    rows = trace.table("snapshots").to_pandas()
    ends = rows[(rows["moment"] == Moment.END) & (rows["space"] == Space.DIRECT_MAP) & (rows["level"] == 1)]
    row = int(ends.index[5])
    pfn, n = int(ends["pfn"][row]), int(ends["n_leaves"][row])
    unmapped = with_cell(source, tmp_path / "p", "snapshots", "attrs", row, int(ends["attrs"][row]) ^ 1)
    assert not verify(open_trace(unmapped)).exact
    pool = with_manifest(unmapped, tmp_path / "pool", memory={"kfence_pool": [pfn, pfn + n]})
    found = verify(open_trace(pool)).to_json()
    assert found["exact"]
    assert found["exceptions"]["kfence_pages"] == n


def test_splits_outside_the_recording_are_shown_apart(source: Path) -> None:
    around = verify(open_trace(source)).to_json()["outside_recording"]
    assert set(around) == {"before_start", "after_end"}


def first_split_row(source: Path) -> int:
    """A direct-map change of secret memory that split a 2M frame, in the part where nothing is read or counted."""
    rebuilt = rebuild(open_trace(source))
    splits = rebuilt.splits[
        (rebuilt.splits["level"] == 2) & (rebuilt.changes.columns["stack_id"][rebuilt.splits["row"]] > 0)
    ]
    return int(splits["row"].iloc[len(splits) // 2])


def test_splits_through_decoy_addresses_are_not_expected_in_the_counters(source: Path, tmp_path: Path) -> None:
    row = first_split_row(source)
    trace = open_trace(source)
    stacks = trace.table("stacks").to_pylist()
    decoy = {"stack_id": 999, "frames": ["set_memory_np+0x1", "set_mce_nospec+0x2", "memory_failure+0x3"]}
    with_stack = rewrite(
        source,
        tmp_path / "a",
        "stacks",
        trace.table("stacks").from_pylist([*stacks, decoy], trace.table("stacks").schema),
    )
    made = with_cell(with_stack, tmp_path / "b", "changes", "stack_id", row, 999)
    before, after = verify(trace).to_json()["splits"], verify(open_trace(made)).to_json()["splits"]
    assert (before["decoys_2m"], after["decoys_2m"]) == (0, 1)
    assert after["found_2m"] == before["found_2m"]


def test_two_calls_that_overlap_in_one_frame_decide_nothing(source: Path, tmp_path: Path) -> None:
    rebuilt = rebuild(open_trace(source))
    changes = rebuilt.changes
    single = changes.direct & (changes.n_pages == 1) & (rebuilt.prediction.level_first != NOT_PREDICTED)
    pairs = []
    for split in rebuilt.splits[rebuilt.splits["level"] == 2]["row"].tolist():
        same = single & (changes.first_pfn // 512 == changes.first_pfn[split] // 512)
        later = (
            same & (changes.columns["ts_ns"] > changes.exit_ns[split]) & (changes.first_pfn != changes.first_pfn[split])
        )
        pairs += [(split, int(row)) for row in np.flatnonzero(later & single[split])[:1]]
    row, following = pairs[0]
    frame = changes.first_pfn[row] // 512
    longer = int(changes.exit_ns[following] - changes.columns["ts_ns"][row]) + 1
    found = verify(open_trace(with_cell(source, tmp_path / "t", "changes", "duration_ns", row, longer)))
    assert found.to_json()["rule_ambiguous"] >= 1
    assert found.rules["ambiguous"].any()
    assert set(found.rules[found.rules["ambiguous"]]["page"] // 512) == {frame}


def test_a_kernel_that_believes_in_no_1g_entries_counts_no_splits_of_them(source: Path, tmp_path: Path) -> None:
    counters = open_trace(source).table("counters").to_pandas()
    counters.loc[counters["counter"].isin(["meminfo/DirectMap1G", "vmstat/direct_map_level3_splits"]), "value"] = 0
    schema = open_trace(source).table("counters").schema
    found = verify(open_trace(rewrite(source, tmp_path / "t", "counters", pa.Table.from_pandas(counters, schema))))
    assert found.to_json()["splits"]["found_1g"] > 0
    assert found.to_json()["splits"]["counted_1g"] == 0
    assert found.exact
