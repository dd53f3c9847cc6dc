"""What verify says of a difference: the page, both answers in words, the rule, and the change whose doing it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyze.commands.verify import run
from analyze.reconstruct import rebuild
from analyze.verify import verify
from analyze.words.mismatches import attribute_words, entry_words, mask_words
from collect.schema import Level, Moment, Pte, Space
from collect.trace import open_trace
from tests.machine.rewrite import with_cell, without_rows

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "7.2-churn"
RW, NX, P = int(Pte.RW), int(Pte.NX), int(Pte.P)


@pytest.fixture(scope="module")
def changes() -> pd.DataFrame:
    return open_trace(SAMPLE).table("changes").to_pandas()


def last_change_of(changes: pd.DataFrame, pfn: int) -> Any:
    """The last single-page change of a page, by exit: the oracle, looked up row by row."""
    mine = changes[(changes["space"] == Space.DIRECT_MAP) & (changes["pfn"] <= pfn)]
    mine = mine[mine["pfn"] + mine["n_pages"] > pfn]
    return mine.loc[(mine["ts_ns"] + mine["duration_ns"]).idxmax()]


def test_words_name_every_bit_and_lose_none() -> None:
    assert attribute_words(P | RW | NX) == "P RW NX"
    assert attribute_words(0) == "none"
    assert attribute_words(1 << 9 | 1 << 11 | 1 << 58) == f"SOFT1 KERNEL_4K {1 << 58:#x}"
    assert entry_words(Level.M2, P | int(Pte.PAT)) == "2M: P PAT"
    assert entry_words(Level.NONE, 0) == "hole"
    assert entry_words(77, P) == "level 77: P"
    assert mask_words(NX, RW | int(Pte.D)) == "-RW -D +NX"
    assert mask_words(0x8, 0x98) == "-PCD -PAT +PWT", "what is set last stays set (_set_memory_wc)"
    assert mask_words(0, 0) == "no masks"


def test_a_page_that_ends_otherwise_is_told_with_the_change_that_touched_it_last(
    changes: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_trace(SAMPLE).table("snapshots").to_pandas()
    ends = rows[(rows["moment"] == Moment.END) & (rows["space"] == Space.DIRECT_MAP) & (rows["level"] == Level.K4)]
    changed = ends[ends["pfn"].isin(changes.loc[changes["space"] == Space.DIRECT_MAP, "pfn"])]
    row, pfn = int(changed.index[20]), int(changed["pfn"].iloc[20])
    wrong = with_cell(SAMPLE, tmp_path / "t", "snapshots", "attrs", row, int(changed["attrs"].iloc[20]) ^ RW)
    expected = last_change_of(changes, pfn)
    [told] = verify(open_trace(wrong)).to_json()["unexplained"]
    assert told["pfn"] == pfn
    differ = set(told["rebuilt"].split()) ^ set(told["snapshot"].split())
    assert differ - {"A", "D"} == {"RW"}, "the CPU sets A and D by itself"
    assert told["last_change"]["call_id"] == expected["call_id"]
    assert told["last_change"]["pid"] == expected["pid"]
    assert told["last_change"]["masks"] == mask_words(int(expected["mask_set"]), int(expected["mask_clr"]))
    assert told["last_change"]["stack"], "a nested call has its parent's"
    assert told["source"] == "__change_page_attr"
    assert run(wrong, as_json=False) == 1
    out = capsys.readouterr().out
    assert f"pfn {pfn:#x}, " in out
    assert told["rebuilt"] in out
    assert f"call {expected['call_id']}, " in out
    assert told["last_change"]["api"] in out
    assert out.isascii()
    assert all(len(line) < 80 for line in out.splitlines())


def test_a_page_that_nothing_touched_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = open_trace(SAMPLE).table("snapshots").to_pandas()
    ends = rows[(rows["moment"] == Moment.END) & (rows["space"] == Space.DIRECT_MAP)]
    row = int(ends.index[ends["level"] == Level.G1][0])
    wrong = with_cell(SAMPLE, tmp_path / "t", "snapshots", "attrs", row, int(ends["attrs"][row]) ^ NX)
    [told] = verify(open_trace(wrong)).to_json()["unexplained"]
    assert told["last_change"] is None
    assert told["last_split"] is None
    run(wrong, as_json=False)
    assert "no recorded change touched this page" in capsys.readouterr().out


def test_a_change_taken_out_leads_to_the_next_one_of_its_page(changes: pd.DataFrame, tmp_path: Path) -> None:
    """That one found a state that no rule explains."""
    rebuilt = rebuild(open_trace(SAMPLE))
    prediction, direct = rebuilt.prediction, rebuilt.changes.direct
    single = direct & (rebuilt.changes.n_pages == 1) & (prediction.level_first == Level.K4)
    written = single & (((prediction.attrs_before ^ prediction.attrs_first) & np.uint64(RW)) != 0)
    found = 0
    for row in np.flatnonzero(written)[40:400:60].tolist():
        pfn, done = int(rebuilt.changes.first_pfn[row]), int(rebuilt.changes.exit_ns[row])
        later = changes[
            (changes["space"] == Space.DIRECT_MAP) & (changes["pfn"] == pfn) & (changes["ts_ns"] > done)
        ].sort_values("ts_ns")
        if not len(later) or later["attrs_before"].iloc[0] & np.uint64(RW) != prediction.attrs_first[row] & np.uint64(
            RW
        ):
            continue
        found += 1
        told = verify(open_trace(without_rows(SAMPLE, tmp_path / str(row), "changes", [row]))).to_json()
        [mine] = [m for m in told["rule_mismatch_list"] if m["page"] == pfn and m["when"] == "before"][:1]
        assert mine["change"]["call_id"] == later["call_id"].iloc[0]
        assert "an earlier change is missing" in mine["rule"]
        assert mine["predicted"] != mine["observed"]
    assert found >= 2


def test_one_bit_that_the_probe_saw_otherwise_is_told_with_its_call(
    changes: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = changes.index[(changes["space"] == Space.DIRECT_MAP) & (changes["level_first"] == Level.K4)]
    row = int(rows[len(rows) // 2])
    seen = int(changes["attrs_first"][row])
    wrong = with_cell(SAMPLE, tmp_path / "t", "changes", "attrs_first", row, seen ^ int(Pte.PWT))
    shown = verify(open_trace(wrong)).to_json()
    assert shown["rule_mismatches"] == 1
    [mine] = shown["rule_mismatch_list"]
    assert mine["change"]["call_id"] == changes["call_id"][row]
    assert (set(mine["predicted"].split()) ^ set(mine["observed"].split())) - {"A", "D"} == {"PWT"}
    assert mine["source"] == "__change_page_attr"
    run(wrong, as_json=False)
    out = capsys.readouterr().out
    assert f"predicted {mine['predicted']}" in out
    assert f"observed  {mine['observed']}" in out
    assert re.search(r"on 1 page from pfn 0x[0-9a-f]+, \d+\.\d{6} s after the start", out)
    json.dumps(shown, allow_nan=False)


def test_names_from_a_trace_do_not_reach_the_terminal_raw(
    changes: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = int(changes.index[changes["space"] == Space.DIRECT_MAP][30])
    named = with_cell(SAMPLE, tmp_path / "a", "strings", "text", 0, "\x1b[31mred\n")
    string = open_trace(named).table("strings")["string_id"][0].as_py()
    made = with_cell(named, tmp_path / "b", "changes", "comm_id", row, string)
    wrong = with_cell(
        made, tmp_path / "c", "changes", "attrs_first", row, int(changes["attrs_first"][row]) ^ int(Pte.PWT)
    )
    run(wrong, as_json=False)
    out = capsys.readouterr().out
    assert "[31mred" in out
    assert "\x1b" not in out
