"""Who keeps frames split, held against plain Python over the rows of synthetic traces."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analyze.attribute import Attribution, attribute
from analyze.causes import By
from analyze.history import History
from analyze.keepers import keepers
from analyze.pages.scatter import BUCKETS, scatter
from analyze.reconstruct import Rebuild, rebuild
from analyze.special_pages import END_NS
from analyze.who import who
from collect.schema import RegionEvent, RegionKind, Tier
from collect.trace import open_trace
from tests.machine import write_trace

HARDWARE, G = 0x60, 0x100
SHARED = (RegionKind.BPF_PACK, RegionKind.ROX_BLOCK)
SEEDS = (31, 32, 33)

Analysed = tuple[Rebuild, Attribution]


@pytest.fixture(scope="module", params=SEEDS)
def analysed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    style = "5.10" if request.param == 33 else "6.1"
    directory = tmp_path_factory.mktemp("machine") / "trace"
    trace = open_trace(write_trace(directory, request.param, scale=0.15, kernel_style=style))
    rebuilt = rebuild(trace)
    return rebuilt, attribute(trace, rebuilt)


def plain_last_change(rebuilt: Rebuild, until_ns: int) -> dict[int, int]:
    """Page: the row that changed it last, of those in effect by then and begun before the page was read at the end."""
    last: dict[int, int] = {}
    changes, read = rebuilt.changes, rebuilt.window.hi if until_ns == END_NS else None
    for row in changes.order.tolist():
        if not changes.direct[row] or changes.effect_ns[row] > until_ns:
            continue
        start, end = changes.pfns_start[row], changes.pfns_start[row + 1]
        done = int(changes.n_done[row])
        pages = changes.pfns[start : start + done] if end > start else changes.first_pfn[row] + np.arange(done)
        for page in pages.tolist():
            if read is None or changes.columns["ts_ns"][row] < read[page // 512]:
                last[page] = row
    return last


def plain_regions(rebuilt: Rebuild) -> list[dict[str, Any]]:
    """Every ALLOC with its lifetime, in order of time."""
    rows = rebuilt.trace.table("regions").to_pylist()
    freed = {}
    for row in rows:
        if row["event"] == RegionEvent.FREE and row["region_id"]:
            freed[row["region_id"]] = min(row["ts_ns"], freed.get(row["region_id"], END_NS))
    found = [
        dict(row, freed_ns=freed.get(row["region_id"], END_NS)) for row in rows if row["event"] == RegionEvent.ALLOC
    ]
    return sorted(found, key=lambda row: row["ts_ns"])


def plain_region_on(
    regions: list[dict[str, Any]], by_page: dict[int, list[dict[str, Any]]], page: int, ts_ns: int, touched_ns: int
) -> tuple[int, int]:
    """(region_id of what was asked for, or of what many share; how many share the page); (0, 0) for none."""
    on = [row for row in by_page.get(page, []) if row["ts_ns"] <= ts_ns]
    lives = [row for row in on if row["freed_ns"] > ts_ns]
    if not lives:
        lives = [row for row in on[-1:] if touched_ns <= row["freed_ns"]]
    if not lives:
        return 0, 0
    backing, by_id = lives[-1], {row["region_id"]: row for row in regions}
    owner = plain_owner(backing, by_id)
    if owner["kind"] not in SHARED:
        return owner["region_id"], 1
    address = backing["address"] + 4096 * backing["pfns"].index(page)
    sharers = [
        row for row in regions
        if row["ts_ns"] <= ts_ns < row["freed_ns"] and row["address"] and plain_owner(row, by_id)["kind"] not in SHARED
        and row["address"] < address + 4096 and row["address"] + max(row["n_bytes"], 1) > address
    ]  # fmt: skip
    return owner["region_id"], len(sharers)


def plain_owner(region: dict[str, Any], by_id: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """What was asked for, or what is shared, that a region is or backs; itself where that is not known."""
    at: dict[str, Any] | None = region
    while at is not None and at["tier"] != Tier.ASKED and at["kind"] not in SHARED:
        at = by_id.get(at["parent_id"])
    return at or region


def moments(rebuilt: Rebuild) -> list[int]:
    """The end, and moments within the recording: just when something took effect, and in between."""
    effect = np.sort(rebuilt.changes.effect_ns)
    span = History(rebuilt.course).span
    inside = effect[(effect > span.first_ns) & (effect < span.last_ns)]
    some = [int(inside[len(inside) * i // 5]) for i in (1, 2, 3, 4)]
    return [END_NS, span.first_ns, *some, some[1] + 500, span.last_ns]


def keepers_at(rebuilt: Rebuild, attribution: Attribution, ts_ns: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    if ts_ns == END_NS:
        return attribution.special, attribution.frames
    return keepers(rebuilt, attribution.makers, History(rebuilt.course).state_at(ts_ns), ts_ns)


def test_each_page_has_the_last_change_that_covers_it_at_any_moment(analysed: Analysed) -> None:
    rebuilt, attribution = analysed
    for ts_ns in moments(rebuilt):
        last = plain_last_change(rebuilt, ts_ns)
        special, _ = keepers_at(rebuilt, attribution, ts_ns)
        assert [last.get(page, -1) for page in special["pfn"].tolist()] == special["row"].tolist()
    assert (special["row"] >= 0).sum() > 20


def test_each_page_has_the_region_that_lies_on_it_at_any_moment(analysed: Analysed) -> None:
    rebuilt, attribution = analysed
    regions = plain_regions(rebuilt)
    by_page: dict[int, list[dict[str, Any]]] = {}
    for row in regions:
        for page in row["pfns"]:
            by_page.setdefault(page, []).append(row)
    end = rebuilt.trace.manifest["ts_end_ns"]
    seen: Counter[str] = Counter()
    for ts_ns in moments(rebuilt):
        special, _ = keepers_at(rebuilt, attribution, ts_ns)
        for page in special.itertuples():
            touched = int(rebuilt.changes.exit_ns[page.row]) if page.row >= 0 else -1
            expected = plain_region_on(regions, by_page, int(page.pfn), end if ts_ns == END_NS else ts_ns, touched)
            assert (page.region_id, page.n_sharers) == expected
            seen[str(page.region_kind)] += 1
            seen["in a pack"] += page.region_kind == "bpf_pack" and page.n_sharers > 0
            seen["late"] += page.region_freed_ns >= 0
    packs = "5.10" not in rebuilt.trace.manifest["kernel"]["release"]
    assert seen["module"] and seen["late"]
    assert seen["in a pack"] if packs else seen["bpf_image"]


def test_frames_split_at_a_moment_are_those_of_the_state_there(analysed: Analysed) -> None:
    rebuilt, attribution = analysed
    for ts_ns in moments(rebuilt)[1:]:
        state = History(rebuilt.course).state_at(ts_ns)
        found = who(rebuilt, attribution, state=state, ts_ns=ts_ns)
        assert found.frames["frame"].tolist() == state.split_frames().tolist()
        assert (found.frames["split_row"] >= 0).sum() == found.split_by["still"].sum()
        effect = rebuilt.changes.effect_ns[found.splits["row"]]
        assert len(found.splits) == (rebuilt.changes.effect_ns[rebuilt.splits["row"]] <= ts_ns).sum()
        assert (effect <= ts_ns).all()
        started = set(rebuilt.start.map.split_frames().tolist())
        split_before = found.frames.loc[found.frames["split_row"] < 0, "frame"]
        assert set(split_before) <= started


def test_frames_have_the_state_that_their_pages_give_them(analysed: Analysed) -> None:
    rebuilt, attribution = analysed
    frames = who(rebuilt, attribution).frames
    usual = rebuilt.splits[rebuilt.splits["level"] == 2].drop_duplicates("pfn", keep="last").set_index("pfn")["attrs"]
    for frame in frames.itertuples():
        pages = [int(word) & ~HARDWARE for word in rebuilt.final.pages_of([int(frame.frame)])[0]]
        if (frame.frame == 0 and frame.split_row < 0) or 0 in pages:
            assert frame.state == "never_whole"
        elif len(set(pages)) == 1:
            assert frame.state == "alike"
        elif frame.pfn in usual.index:
            original = int(usual[frame.pfn]) & ~HARDWARE
            others = any(page ^ original not in (0, G) for page in pages)
            assert frame.state == ("kept" if others else "residue")
    assert set(frames["state"]) >= {"never_whole", "residue", "kept"}


@pytest.mark.parametrize("by", list(By))
def test_frames_and_pages_of_causes_are_those_of_their_pages(analysed: Analysed, by: By) -> None:
    rebuilt, attribution = analysed
    found = who(rebuilt, attribution, by)
    live = found.special[~found.special["residue"] & found.special["kept"]]
    held: dict[int, set[tuple[str, str]]] = {}
    pages: Counter[tuple[str, str]] = Counter()
    for page in live.itertuples():
        cause = (str(page.user), str(page.cause))
        held.setdefault(int(page.frame), set()).add(cause)
        pages[cause] += 1
    assert set(held) == set(found.frames.loc[found.frames["state"] == "kept", "frame"])
    assert len(found.causes) == len(pages)
    for row in found.causes.itertuples():
        cause = (str(row.user), str(row.cause))
        assert row.pages == pages[cause]
        assert row.frames == sum(cause in causes for causes in held.values())
        assert row.alone_frames == sum(causes == {cause} for causes in held.values())
    gone = {(str(row.user), str(row.cause)) for row in found.causes.itertuples() if row.group == "own"}
    assert found.own_first == sum(causes <= gone for causes in held.values())
    freed = found.own_first
    for step in found.steps.itertuples():
        gone |= {(str(found.causes["user"][at]), str(found.causes["cause"][at])) for at in step.causes}
        assert sum(causes <= gone for causes in held.values()) - freed == step.healed
        freed += step.healed


def test_splits_are_counted_once_whatever_the_axis(analysed: Analysed) -> None:
    rebuilt, attribution = analysed
    for by in By:
        table = who(rebuilt, attribution, by).split_by
        assert table["n_2m"].sum() == (rebuilt.splits["level"] == 2).sum()
        assert table["n_1g"].sum() == (rebuilt.splits["level"] == 3).sum()
        assert (table["still"] == table["kept"] + table["residue"] + table["alike"]).all()
        assert table["still"].sum() == (attribution.frames["split_row"] >= 0).sum()


def test_how_pages_lie_is_counted_as_by_hand(analysed: Analysed) -> None:
    _, attribution = analysed
    live = attribution.special[~attribution.special["residue"]]["pfn"].tolist()
    per_frame = Counter(page // 512 for page in live)
    found = scatter(np.array(live, np.int64))
    assert (found.pages, found.frames) == (len(live), len(per_frame))
    assert found.least == (len(live) + 511) // 512
    assert found.gigas == len({page // (512 * 512) for page in live})
    assert found.most == max(per_frame.values())
    fullness = [sum(first <= n <= last for n in per_frame.values()) for first, last in BUCKETS]
    assert list(found.by_fullness) == fullness


def test_asked_for_the_end_by_its_state_the_answer_is_the_same(analysed: Analysed) -> None:
    rebuilt, attribution = analysed
    special, frames = keepers(rebuilt, attribution.makers, rebuilt.final.copy())
    assert special.equals(attribution.special)
    assert frames.equals(attribution.frames)
