"""The map in the page: every frame in its place and named, whatever the size of the machine; held against the map itself."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from analyze.analysis import Analysis, analyse
from analyze.before_start import ATTACHING
from analyze.frame_states import (
    HOLE,
    LEAF_1G,
    LEAF_2M,
    SPLIT_ATTACHING,
    SPLIT_BEFORE,
    USER_STATES,
    cells_of,
    frame_states,
    splits_of_2m,
)
from analyze.plots.style import MARKS
from analyze.report import memory_map
from analyze.report.memory_map import ACROSS, DOWN, MAX_BLOCKS, map_view
from analyze.report.page import MapView, Spot
from analyze.who import Who, who
from collect.schema import Level

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "6.1-churn"


@pytest.fixture(scope="module")
def analysed() -> tuple[Analysis, Who]:
    analysis = analyse(SAMPLE)
    return analysis, who(analysis.rebuilt, analysis.attribution)


@pytest.fixture(scope="module")
def view(analysed: tuple[Analysis, Who]) -> MapView:
    return map_view(*analysed)


def painted(path: str) -> set[tuple[int, int]]:
    """Cells that the area of a layer covers."""
    runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path)
    assert "".join(f"M{x} {y}h{n}v1h-{m}z" for x, y, n, m in runs) == path
    return {(int(x) + i, int(y)) for x, y, n, _ in runs for i in range(int(n))}


def spots(view: MapView) -> list[tuple[int, Spot]]:
    """With the GiB of their block."""
    return [(int(block.label.split()[0]), spot) for block in view.blocks for spot in block.spots]


def test_every_frame_is_painted_once_and_as_it_is(analysed: tuple[Analysis, Who], view: MapView) -> None:
    states = frame_states(analysed[0])
    cells = sum(len(painted(layer.area)) for block in view.blocks for layer in block.layers)
    assert cells == np.count_nonzero(states != HOLE)
    n_4k = sum(
        len(painted(layer.area))
        for block in view.blocks
        for layer in block.layers
        if layer.key not in ("level-2M", "level-1G")
    )
    assert n_4k == np.count_nonzero(analysed[0].rebuilt.final.frame_levels() == Level.K4)


def test_every_frame_in_4k_entries_is_named_at_its_place(analysed: tuple[Analysis, Who], view: MapView) -> None:
    at = {gib * 512 + spot.y * ACROSS + spot.x: spot.text for gib, spot in spots(view)}
    assert sorted(at) == analysed[1].frames["frame"].tolist()
    for frame, text in at.items():
        assert text.startswith(f"{frame / 512:.3f} GiB: "), text


def test_it_says_who_split_a_frame_and_who_keeps_it(analysed: tuple[Analysis, Who], view: MapView) -> None:
    analysis, kept = analysed
    at = {gib * 512 + spot.y * ACROSS + spot.x: spot.text for gib, spot in spots(view)}
    labels = {"module": "modules", "bpf": "BPF", "kprobe": "kprobes"}
    split = splits_of_2m(analysis)
    assert len(split) == 141
    for frame, user in zip(split["frame"], split["user"], strict=True):
        assert f"split by {labels.get(user, user)}" in at[frame]
    before = set(at) - set(split["frame"])
    ours = {frame for frame in before if "split by our recorder while attaching; kept by" in at[frame]}
    attaching = kept.frames.loc[kept.frames["split_name"] == ATTACHING, "frame"].tolist()
    assert sorted(ours) == attaching == [2344, 2350], "what `who` says came while we attached"
    assert len(before - ours) == 11 and all("split before the recording" in at[frame] for frame in before - ours)
    assert at[2344].endswith("kept by 10 pages of our recorder, from attaching")
    usbcommon = kept.special[(kept.special["cause"] == "usb_common") & kept.special["kept"] & ~kept.special["residue"]]
    assert usbcommon["frame"].nunique() == 1
    assert "kept by 2 pages of module usb_common" in at[int(usbcommon["frame"].iloc[0])]
    states = kept.frames.set_index("frame")["state"]
    for frame, text in at.items():
        assert ("kept by no page" in text) is (states[frame] in ("residue", "alike")), text


def test_the_legend_has_our_recorder_s_frames_apart_from_those_before_the_recording(view: MapView) -> None:
    legend = {entry.text.rpartition(": ")[0]: entry for entry in view.legend}
    assert legend["4K before the recording"].text.endswith(": 11")
    ours = legend["split by our recorder while attaching"]
    assert ours.text.endswith(": 2") and ours.key == "user-collector" and ours.marks == MARKS["="]
    n_4k = sum(int(e.text.rpartition(": ")[2].replace(",", "")) for e in view.legend if not e.key.startswith("level-"))
    assert n_4k + 11 == 154


def test_the_recorder_s_frames_have_a_layer_of_their_own(analysed: tuple[Analysis, Who], view: MapView) -> None:
    states = frame_states(analysed[0])
    at = {
        (int(block.label.split()[0]) * 512 + y * ACROSS + x)
        for block in view.blocks
        for layer in block.layers
        if MARKS["="] in layer.marks
        for x, y in painted(layer.area)
    }
    assert sorted(at) == np.flatnonzero(states == SPLIT_ATTACHING).tolist() == [2344, 2350]


def test_of_emulated_cpus_no_time_is_told(view: MapView) -> None:
    assert not any(re.search(r"after [\d.]+ s", spot.text) for _, spot in spots(view))


@pytest.mark.parametrize("n_gib", [1, MAX_BLOCKS, MAX_BLOCKS + 1, 500, 16384])
def test_any_machine_has_a_map_of_bounded_size(
    analysed: tuple[Analysis, Who], n_gib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = np.full(512 * n_gib, LEAF_2M, np.uint8)
    rng = np.random.default_rng(n_gib)
    split = rng.random(len(states)) < 0.3
    states[split] = SPLIT_BEFORE + 1 + rng.integers(0, 7, int(split.sum())).astype(np.uint8)
    monkeypatch.setattr(memory_map, "frame_states", lambda _: states)
    found = map_view(*analysed)
    assert len(found.blocks) <= MAX_BLOCKS
    size = sum(len(layer.area) + len(layer.marks) for block in found.blocks for layer in block.layers)
    size += sum(len(spot.text) for _, spot in spots(found))
    assert size < 1_500_000
    assert len(spots(found)) <= memory_map.MAX_SPOTS
    cells = sum(len(painted(layer.area)) for block in found.blocks for layer in block.layers)
    per_cell = 1 << max(0, int(np.ceil(np.log2(n_gib / MAX_BLOCKS))))
    assert cells == -(-len(states) // per_cell) and cells <= MAX_BLOCKS * ACROSS * DOWN
    if found.n_unnamed:
        assert len(spots(found)) == memory_map.MAX_SPOTS


def test_what_has_no_room_for_a_name_is_counted(
    analysed: tuple[Analysis, Who], view: MapView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_map, "MAX_SPOTS", 100)
    found = map_view(*analysed)
    assert len(spots(found)) == 100 and found.n_unnamed == len(spots(view)) - 100
    assert not any("before the recording" in spot.text for _, spot in spots(found)), "those of the recording go first"


def test_a_cell_of_several_frames_is_as_dark_as_it_is_in_4k(
    analysed: tuple[Analysis, Who], view: MapView, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_cell = 8
    states = np.full((512 * MAX_BLOCKS, per_cell), LEAF_2M, np.uint8)
    states[0, :1] = SPLIT_BEFORE  # an eighth: the first quarter
    states[1, :4] = SPLIT_BEFORE
    states[2, :5] = SPLIT_BEFORE
    states[3] = SPLIT_BEFORE
    states[4, 3:] = HOLE
    states[4, :3] = SPLIT_BEFORE  # all that is there
    states[5, 7] = USER_STATES["module"]
    monkeypatch.setattr(memory_map, "frame_states", lambda _: states.reshape(-1))
    found = map_view(*analysed)
    assert found.shaded and not view.shaded
    layers = found.blocks[0].layers
    dark = {layer.opacity: painted(layer.area) for layer in layers if layer.key == "level-4K"}
    assert dark == {0.25: {(0, 0)}, 0.5: {(1, 0)}, 0.75: {(2, 0)}, 1.0: {(3, 0), (4, 0)}}
    (whole, below) = (painted(layer.area) for layer in layers if layer.key == "level-2M")
    assert below == {(0, 0), (1, 0), (2, 0)} and (6, 0) in whole and len(whole) == 512 - 6
    (user,) = (layer for layer in layers if layer.key == "user-module")
    assert painted(user.area) == {(5, 0)} and user.opacity == 1
    assert all(layer.opacity == 1 for block in view.blocks for layer in block.layers)


def test_cells_show_the_split_that_comes_last_and_how_much_is_in_4k() -> None:
    states = np.array([LEAF_1G, LEAF_1G, LEAF_2M, SPLIT_BEFORE, HOLE, SPLIT_BEFORE, LEAF_2M], np.uint8)
    assert [column.tolist() for column in cells_of(states, 2, 5)] == [
        [LEAF_1G, SPLIT_BEFORE, SPLIT_BEFORE, LEAF_2M, HOLE],
        [0, 2, 4, 0, 0],
    ]
