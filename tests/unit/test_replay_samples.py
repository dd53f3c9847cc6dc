"""Replays of the real recordings: what must hold of each, and golden counts of those that we know."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collect.trace import open_trace
from replay.engine import walk
from replay.placement import GONE, Placement
from replay.policies import POLICIES
from replay.policies.choose import choose
from replay.requests import NEVER
from replay.results import PolicyResult
from replay.run import replay
from replay.stream import Stream, as_asked, decode
from replay.users import User

SAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "sample_traces").glob("*/manifest.json"))

GOLDEN_FILE = Path(__file__).parent / "replay_golden.json"
"""By sample and policy; one recorded anew needs its counts looked at, and written anew by
`python3 -m tests.unit.test_replay_samples`. Checked by hand where a hand can: 5.10-bpf is 1024 images of 3 pages, each made
ro and x and reset by vfree, and the 3072 pages held at most are 6 blocks of 512."""

WAYS = (
    *POLICIES,
    "none+merge",
    "gfp-unmapped+merge",
    "gfp-unmapped:variant=cover",
    "gfp-unmapped:variant=ideal",
    "gfp-unmapped:requests=asked",
    "prog-pack:requests=asked",
    "rox-cache:requests=asked",
    "clairvoyant:old-frames=left",
)

FIGURES = (
    "split_2m",
    "split_2m_live_end",
    "split_2m_live_peak",
    "split_1g",
    "merges",
    "page_table_pages_end",
    "cpa_calls",
    "cpa_steps",
    "tlb_flushes_split",
    "tlb_flushes_ranged",
    "idle_pages_peak",
    "pages_unmapped",
)


Sample = tuple[Stream, dict[str, PolicyResult]]


def results_of(path: Path) -> Sample:
    stream = decode(open_trace(path))
    asked = as_asked(stream)
    return stream, {p.label: replay(asked if p.as_asked else stream, p) for p in choose(WAYS)}


@pytest.fixture(scope="module", params=SAMPLES, ids=lambda path: path.name)
def sample(request: pytest.FixtureRequest) -> Sample:
    return results_of(request.param)


def figures(result: PolicyResult) -> dict[str, list[float]]:
    return {name: getattr(result, name).to_json() for name in FIGURES}


def test_what_must_hold(sample: Sample) -> None:
    stream, results = sample
    none, gfp, pack = (results[name] for name in ("none", "gfp-unmapped", "prog-pack"))
    assert none.split_2m.exact
    assert none.split_2m.lo >= 40
    assert gfp.split_2m.hi < none.split_2m.lo / 5  # a cache of 2 MiB blocks, and memory never short
    assert gfp.requests["served"] == len(stream.requests)
    assert pack.identity == stream.requests.has_packs
    if pack.identity:
        assert figures(pack) == figures(none)
    held = int(stream.requests.n_pages[stream.requests.end_ns == NEVER].sum())
    refilled = sum(int(count.hi) << order for order, count in gfp.refills.items())
    assert gfp.idle_pages_end.hi + held == refilled  # every page is cached or in use


def test_every_call_and_step_is_somebodys(sample: Sample) -> None:
    """On kernels without a ROX cache every change of these loads is on a page of a request."""
    stream, _ = sample
    if stream.requests.n_in_old_blocks:
        pytest.skip("areas of a ROX block from before the recording are nobody's")
    assert (stream.calls.request >= 0).mean() > 0.95
    assert (stream.steps.page_owned >= 0).mean() > 0.95


def test_golden_counts(sample: Sample) -> None:
    stream, results = sample
    golden = json.loads(GOLDEN_FILE.read_text())
    assert {name: figures(result) for name, result in results.items()} == golden[stream.trace.path.name]


def test_no_policy_beats_the_clairvoyant_bound(sample: Sample) -> None:
    _, results = sample
    bound = results["clairvoyant"]
    for name, result in results.items():
        assert [m for m in FIGURES if getattr(result, m).lo < getattr(bound, m).lo] == [], name


def test_the_bound_is_reached_by_a_packing(sample: Sample) -> None:
    """Fresh blocks alone: what is proved to be needed and what a packing needs are the same, but for what it need not prove."""
    stream, results = sample
    left = results["clairvoyant:old-frames=left"].split_2m
    pages = stream.requests.n_pages * (stream.requests.user != User.SECRETMEM)
    request, is_free, _ = stream.requests.events(pages > 0)
    most = int(np.cumsum(np.where(is_free, -1, 1) * pages[request]).max(initial=0))
    assert left.lo <= left.hi == -(-most // 512)


def test_the_bound_is_reached_by_an_offline_packing(sample: Sample) -> None:
    """Each page of each request, while it lives, on an ordinary page of the frames that were split at the start.

    Every recorded change is carried there, and not one entry is split but by what is no request's: what is proved to be needed
    is enough, if nobody else is in these frames (which a trace of some pages does not tell).
    """
    stream, results = sample
    start, requests = stream.rebuilt.start.map, stream.requests
    frames = start.split_frames()
    in_ram = [(frame * 512 + i) for frame in frames.tolist() for i in range(512)]
    ordinary = (start.pages_of(frames) & np.uint64(3) == 3).reshape(-1)
    ranges = stream.trace.manifest["memory"]["ranges"]
    room = [page for page, ok in zip(in_ram, ordinary, strict=True) if ok and any(a <= page < b for a, b in ranges)]
    assert len(room) == stream.host.room.sum()
    dest = np.full(len(requests.pfn), GONE, np.int64)
    for request, is_free, _ in zip(*(column.tolist() for column in requests.events(requests.n_pages > 0)), strict=True):
        pages = slice(requests.first[request], requests.first[request + 1])
        if is_free:
            room += dest[pages].tolist()
        else:
            dest[pages] = [room.pop() for _ in range(pages.start, pages.stop)]
    packed = walk(stream, Placement(dest=dest, swallowed=np.zeros(len(requests), np.bool_)))
    assert packed.n_steps >= results["none"].cpa_steps.lo  # what was one call on a range may be several here
    bound = results["clairvoyant"]
    assert packed.split_2m == (bound.split_2m.lo, bound.split_2m.lo)
    assert packed.split_1g == (bound.split_1g.lo, bound.split_1g.lo)
    assert packed.splits == (bound.tlb_flushes_split.lo, bound.tlb_flushes_split.lo)
    assert packed.live_peak == (bound.split_2m_live_peak.lo, bound.split_2m_live_peak.lo)
    assert packed.live_end == (0, 0)
    merged = walk(stream, Placement(dest=dest, swallowed=np.zeros(len(requests), np.bool_), merged_at_last=True))
    if (requests.end_ns != NEVER).all():  # nothing special is left: all that could be one entry is
        assert sum(merged.map.counts().values()) == bound.leaf_entries_end.lo


def test_a_cache_taken_away_and_modelled_again_is_the_recorded_one(sample: Sample) -> None:
    """A kernel's own packs and ROX blocks against ours on what was asked of them: its number lies within the bounds."""
    stream, results = sample
    none = results["none"]
    for name, has in (("rox-cache", stream.requests.has_rox), ("prog-pack", stream.requests.has_packs)):
        if has:
            modelled = results[f"{name}:requests=asked"]
            assert not modelled.identity
            for measure in ("split_2m", "split_2m_live_end", "split_2m_live_peak", "split_1g"):
                bounds, recorded = getattr(modelled, measure), getattr(none, measure)
                assert bounds.lo <= recorded.lo <= bounds.hi, (name, measure)


if __name__ == "__main__":
    every = {path.name: {name: figures(r) for name, r in results_of(path)[1].items()} for path in SAMPLES}
    lines = [
        f"  {json.dumps(sample)}: {{\n"
        + ",\n".join(f"    {json.dumps(n)}: {json.dumps(f)}" for n, f in ways.items())
        + "\n  }"
        for sample, ways in every.items()
    ]
    GOLDEN_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
