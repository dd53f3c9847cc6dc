"""`none` gives back the recording, on synthetic machines and on every sample; a page in the wrong place is noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collect.errors import TraceError
from collect.schema import Level
from collect.trace import open_trace
from replay import calls
from replay.engine import Walk, walk
from replay.placement import GONE, MAX_BLOCKS, SYMBOLIC, Placement, as_recorded
from replay.policies import POLICIES
from replay.policies.choose import choose
from replay.requests import Life
from replay.run import replay
from replay.stream import Stream, as_asked, decode
from tests.machine import write_trace

SAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "sample_traces").glob("*/manifest.json"))
STYLES = ["5.10", "6.1"]


@pytest.fixture(scope="module", params=STYLES)
def stream(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stream:
    directory = tmp_path_factory.mktemp("machine") / str(request.param)
    return decode(open_trace(write_trace(directory, 7, scale=0.3, kernel_style=request.param)))


def differences(stream: Stream, done: Walk) -> list[str]:
    """In what a replay differs from the analyzer's reconstruction of the same trace."""
    found = [
        name
        for name, mine, theirs in zip(
            ("pfn", "level", "n_leaves", "attrs"), done.map.runs(), stream.rebuilt.final.runs(), strict=True
        )
        if not np.array_equal(mine, theirs)
    ]
    n = int(done.log.n[0])
    found += [
        f"splits.{name}"
        for name in ("row", "ts_ns", "pfn", "page", "level", "attrs")
        if not np.array_equal(getattr(done.log, name)[:n], stream.rebuilt.splits[name].to_numpy())
    ]
    frames = stream.rebuilt.splits.pfn[stream.rebuilt.splits.level == Level.M2].nunique()
    if done.split_2m != (frames, frames):
        found.append("split_2m")
    return found


def test_none_gives_back_the_recording(stream: Stream) -> None:
    assert len(stream.requests) > 10
    assert (stream.steps.page_owned >= 0).any()
    (placement,) = POLICIES["none"].place(stream.requests, stream.host).placements
    assert differences(stream, walk(stream, placement)) == []


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_none_gives_back_every_sample(path: Path) -> None:
    stream = decode(open_trace(path))
    assert differences(stream, walk(stream, as_recorded(stream.requests))) == []


def test_a_page_moved_by_one_is_noticed(stream: Stream) -> None:
    """Each of some pages that were changed, moved to the next frame: final state or splits differ."""
    changed = np.unique(stream.steps.page_owned[stream.steps.page_owned >= 0])
    for page in changed[:: max(1, len(changed) // 20)]:
        dest = stream.requests.pfn.copy()
        dest[page] += 1
        placement = Placement(dest=dest, swallowed=np.zeros(len(stream.requests), np.bool_))
        steps_of_page = np.flatnonzero(stream.steps.page_owned == page)
        done = walk(stream, placement)
        if differences(stream, done):
            continue
        # a page that was made special and ordinary again leaves no trace in the end, unless G tells: look midway
        step = np.searchsorted(stream.steps.page_first, steps_of_page[0], side="right") - 1
        assert differences_midway(stream, placement, int(step)), f"page {page} moved unnoticed"


def differences_midway(stream: Stream, placement: Placement, step: int) -> bool:
    """Whether two placements' maps differ right after a step."""
    names = [name for name in stream.steps.__dataclass_fields__ if name not in ("page_first", "page_owned")]
    cut = replace(
        stream.steps,
        **{name: getattr(stream.steps, name)[: step + 1] for name in names},
        page_first=stream.steps.page_first[: step + 2],
    )
    part = replace(stream, steps=cut)
    mine, recorded = walk(part, placement).map.runs(), walk(part, as_recorded(stream.requests)).map.runs()
    return any(not np.array_equal(a, b) for a, b in zip(mine, recorded, strict=True))


def test_steps_without_owned_pages_stay_under_every_policy(stream: Stream) -> None:
    """With every request gone, what is left is what nobody asked for, in the frames where it was."""
    n = len(stream.requests)
    gone = Placement(dest=np.full(len(stream.requests.pfn), GONE), swallowed=np.ones(n, np.bool_))
    left = walk(stream, gone)
    recorded = walk(stream, as_recorded(stream.requests))
    mine = set(left.log.pfn[: left.log.n[0]].tolist())
    assert mine <= set(recorded.log.pfn[: recorded.log.n[0]].tolist())
    assert left.n_steps < recorded.n_steps
    assert left.split_2m[1] <= recorded.split_2m[1]


def test_a_request_in_a_symbolic_block_splits_that_block(stream: Stream) -> None:
    requests = stream.requests
    dest = requests.pfn.copy()
    which = int(np.argmax(requests.n_pages))
    pages = np.arange(requests.first[which], requests.first[which + 1])
    dest[pages] = SYMBOLIC + np.arange(len(pages))
    n_blocks = -(-len(pages) // 512)
    done = walk(stream, Placement(dest=dest, swallowed=np.zeros(len(requests), np.bool_), n_blocks=n_blocks))
    touched = np.isin(stream.steps.page_owned, pages).any()
    symbolic = done.map.counts(symbolic=True)
    assert bool(symbolic[Level.K4]) == bool(touched)
    lo, hi = done.split_2m
    assert lo <= hi <= lo + n_blocks


EVERY_WAY = [
    *POLICIES,
    *(f"{name}+merge" for name in POLICIES),
    "gfp-unmapped:variant=cover",
    "gfp-unmapped:variant=ideal",
    *(f"{name}:requests=asked" for name in ("gfp-unmapped", "grouped", "migrate-unmapped", "prog-pack", "rox-cache")),
]
MEASURES = (
    "split_2m", "split_2m_live_end", "split_2m_live_peak", "split_1g", "leaf_entries_end", "page_table_pages_end",
    "cpa_calls", "cpa_steps", "tlb_flushes_split", "tlb_flushes_call", "tlb_flushes_ranged", "idle_pages_mean",
    "idle_pages_peak", "idle_pages_end", "pages_unmapped",
)  # fmt: skip


@pytest.mark.parametrize("text", EVERY_WAY)
def test_no_policy_beats_the_clairvoyant_bound(stream: Stream, text: str) -> None:
    (policy,) = choose([text])
    result = replay(as_asked(stream) if policy.as_asked else stream, policy)
    bound = replay(stream, POLICIES["clairvoyant"])
    beaten = [name for name in MEASURES if getattr(result, name).lo < getattr(bound, name).lo]
    assert beaten == []


@pytest.mark.parametrize("name", EVERY_WAY)
def test_results_are_whole_and_in_order(stream: Stream, name: str) -> None:
    (policy,) = choose([name])
    if policy.as_asked:
        stream = as_asked(stream)
    result = replay(stream, policy)
    total = result.requests
    assert total["served"] + total["not_served"] + total["as_recorded"] == total["total"]
    assert total["total"] == np.count_nonzero(stream.requests.life != Life.CACHE)
    assert sum(result.requests_by_user.values()) == total["total"]
    assert sum(by.hi for by in result.split_2m_by_user.values()) >= result.split_2m.hi
    assert (
        result.page_table_pages_end.lo >= result.page_table_pages_start.lo or "merge" in name or name == "clairvoyant"
    )
    assert (result.merges.hi > 0) <= ("merge" in name or name == "clairvoyant")
    assert result.split_2m_live_end.hi <= result.split_2m_live_peak.hi <= result.split_2m.hi
    assert (np.diff(result.series.split_hi) >= 0).all()
    assert (result.series.split_lo <= result.series.split_hi).all()
    assert result.series.split_hi[-1] <= result.split_2m.hi
    assert result.series.idle_hi.max() <= result.idle_pages_peak.hi
    assert result.idle_pages_mean.hi <= result.idle_pages_peak.hi
    assert result.tlb_flushes_split.hi >= result.split_2m.hi
    if name == "none":
        assert result.identity
        assert result.split_2m.exact
        assert result.split_1g.exact
        assert not result.refills
        end = sum(stream.rebuilt.final.counts().values())
        assert result.leaf_entries_end.to_json() == [end, end]


def test_prog_pack_is_the_identity_where_the_kernel_has_packs(stream: Stream) -> None:
    result = replay(stream, POLICIES["prog-pack"])
    assert result.identity == stream.requests.has_packs
    if result.identity:
        assert result.split_2m == replay(stream, POLICIES["none"]).split_2m


def test_more_pieces_than_can_be_followed_are_refused(stream: Stream) -> None:
    n = len(stream.requests)
    endless = Placement(dest=stream.requests.pfn.copy(), swallowed=np.zeros(n, np.bool_), n_blocks=MAX_BLOCKS + 1)
    with pytest.raises(TraceError, match="more than can be followed"):
        walk(stream, endless)


def test_pages_made_executable_are_found_in_parts_as_at_once(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = calls.text_pages(stream.rebuilt.changes, stream.requests)
    monkeypatch.setattr(calls, "PAGES_AT_ONCE", 16)
    monkeypatch.setattr(calls, "MAX_PARTS", 1 << 20)
    assert np.array_equal(calls.text_pages(stream.rebuilt.changes, stream.requests), at_once)
    assert at_once.any()
    monkeypatch.setattr(calls, "MAX_PARTS", 1)
    with pytest.raises(TraceError, match="pages executable"):
        calls.text_pages(stream.rebuilt.changes, stream.requests)
