"""Replays of the real recordings: what must hold of each, and golden counts of those that we know."""

from __future__ import annotations

from pathlib import Path

import pytest

from collect.trace import open_trace
from replay.policies import POLICIES
from replay.requests import NEVER
from replay.results import PolicyResult
from replay.run import replay
from replay.stream import Stream, decode

SAMPLES = sorted(path.parent for path in (Path(__file__).parents[2] / "sample_traces").glob("*/manifest.json"))

GOLDEN: dict[str, dict[str, dict[str, list[int]]]] = {
    # By sample; checked by hand where a hand can: 5.10-bpf is 1024 images of 3 pages, each made ro and x and reset by vfree,
    # and the 3072 pages held at most are 6 blocks of 512; one recorded anew needs its counts looked at and written here anew
    "5.10-bpf": {
        "none": {
            "split_2m": [98, 98],
            "split_1g": [2, 2],
            "cpa_calls": [8192, 8192],
            "cpa_steps": [9216, 9216],
            "tlb_flushes_split": [100, 100],
            "tlb_flushes_ranged": [1024, 1024],
            "idle_pages_peak": [0, 0],
        },
        "gfp-unmapped": {
            "split_2m": [5, 6],
            "split_1g": [0, 4],
            "cpa_calls": [8198, 8198],
            "cpa_steps": [9222, 9222],
            "tlb_flushes_split": [5, 10],
            "tlb_flushes_ranged": [1030, 1030],
            "idle_pages_peak": [3072, 3072],
        },
        "prog-pack": {
            "split_2m": [0, 95],
            "split_1g": [0, 4],
            "cpa_calls": [4104, 5130],
            "cpa_steps": [6144, 7680],
            "tlb_flushes_split": [0, 99],
            "tlb_flushes_ranged": [4, 5],
            "idle_pages_peak": [674, 1186],
        },
    },
    "6.1-churn": {
        "none": {
            "split_2m": [141, 141],
            "split_1g": [3, 3],
            "cpa_calls": [11790, 11790],
            "cpa_steps": [15231, 15231],
            "tlb_flushes_split": [144, 144],
            "tlb_flushes_ranged": [1150, 1150],
            "idle_pages_peak": [0, 0],
        },
        "gfp-unmapped": {
            "split_2m": [10, 10],
            "split_1g": [0, 4],
            "cpa_calls": [9780, 9780],
            "cpa_steps": [13221, 13221],
            "tlb_flushes_split": [10, 14],
            "tlb_flushes_ranged": [150, 150],
            "idle_pages_peak": [5087, 5087],
        },
        "prog-pack": {
            "split_2m": [141, 141],
            "split_1g": [3, 3],
            "cpa_calls": [11790, 11790],
            "cpa_steps": [15231, 15231],
            "tlb_flushes_split": [144, 144],
            "tlb_flushes_ranged": [1150, 1150],
            "idle_pages_peak": [0, 0],
        },
    },
    "7.2-churn": {
        "none": {
            "split_2m": [136, 136],
            "split_1g": [1, 1],
            "cpa_calls": [12233, 12233],
            "cpa_steps": [17929, 17929],
            "tlb_flushes_split": [137, 137],
            "tlb_flushes_ranged": [1065, 1065],
            "idle_pages_peak": [0, 0],
        },
        "gfp-unmapped": {
            "split_2m": [8, 11],
            "split_1g": [0, 4],
            "cpa_calls": [11063, 11063],
            "cpa_steps": [16759, 16759],
            "tlb_flushes_split": [8, 15],
            "tlb_flushes_ranged": [230, 230],
            "idle_pages_peak": [4725, 4725],
        },
        "prog-pack": {
            "split_2m": [136, 136],
            "split_1g": [1, 1],
            "cpa_calls": [12233, 12233],
            "cpa_steps": [17929, 17929],
            "tlb_flushes_split": [137, 137],
            "tlb_flushes_ranged": [1065, 1065],
            "idle_pages_peak": [0, 0],
        },
    },
}
FIGURES = (
    "split_2m",
    "split_1g",
    "cpa_calls",
    "cpa_steps",
    "tlb_flushes_split",
    "tlb_flushes_ranged",
    "idle_pages_peak",
)


@pytest.fixture(scope="module", params=SAMPLES, ids=lambda path: path.name)
def sample(request: pytest.FixtureRequest) -> tuple[Stream, dict[str, PolicyResult]]:
    stream = decode(open_trace(request.param))
    return stream, {name: replay(stream, policy) for name, policy in POLICIES.items()}


def figures(result: PolicyResult) -> dict[str, list[float]]:
    return {name: getattr(result, name).to_json() for name in FIGURES}


def test_what_must_hold(sample: tuple[Stream, dict[str, PolicyResult]]) -> None:
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


def test_every_call_and_step_is_somebodys(sample: tuple[Stream, dict[str, PolicyResult]]) -> None:
    """On kernels without a ROX cache every change of these loads is on a page of a request."""
    stream, _ = sample
    if stream.requests.n_in_old_blocks:
        pytest.skip("areas of a ROX block from before the recording are nobody's")
    assert (stream.calls.request >= 0).mean() > 0.95
    assert (stream.steps.page_owned >= 0).mean() > 0.95


def test_golden_counts(sample: tuple[Stream, dict[str, PolicyResult]]) -> None:
    stream, results = sample
    assert {name: figures(result) for name, result in results.items()} == GOLDEN[stream.trace.path.name]
