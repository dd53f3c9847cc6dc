"""The pictures: same bytes for the same data, both themes, nothing that only colour tells, any size of machine."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from analyze.frame_states import HOLE, LEAF_1G, LEAF_2M, SPLIT_ATTACHING, SPLIT_BEFORE, USER_STATES
from analyze.pages.free_blocks import FreeBlocks
from analyze.plots.free import free_figure
from analyze.plots.levels import LevelsOverTime, Moments, SplitsOverTime, levels_figure
from analyze.plots.memory_map import STATE_LOOKS, map_figure
from analyze.plots.overview import overview_figure
from analyze.plots.style import ATTACHING, CSS, LEVELS, MARKS, USERS, inline_svg, save
from analyze.words.numbers import memory as size

GIGA = 1 << 18


def levels(n: int = 3) -> Figure:
    t_s = np.linspace(0.0, 9.0, n + 1)
    one = np.full(n + 1, 2 * GIGA)
    one[n // 2 + 1 :] -= GIGA
    small = 512 * np.arange(n + 1)
    over_time = LevelsOverTime(t_s, one, 4 * GIGA - one - small, small)
    users = np.array([list(USERS)[i % len(USERS)] for i in range(n)], dtype=object)
    splits = SplitsOverTime(t_s[1:], users, np.arange(n) == n // 2)
    return levels_figure(over_time, splits, 10.0)


def states(n_gib: int) -> np.ndarray:
    found = np.full(512 * n_gib, LEAF_1G, np.uint8)
    found[:512] = LEAF_2M
    found[:9] = SPLIT_BEFORE
    found[10 : 10 + len(USER_STATES)] = list(USER_STATES.values())
    return found


def memory(n_gib: int = 4) -> Figure:
    return map_figure(states(n_gib), np.array([1]))


def overview() -> Figure:
    users = np.array(["bpf", "module"], dtype=object)
    splits = SplitsOverTime(np.array([1.0, 2.0]), users, np.array([False, True]))
    sentence = (
        "Linux 6.1 with 4 GiB: in 10 seconds, 1 of the direct map's 2M entries and 1 of its 1G entries were split."
    )
    return overview_figure(sentence, "Exact: 0 unexplained.", states(4), np.array([1]), splits, 10.0)


@pytest.mark.parametrize("draw", [levels, memory, overview])
@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_the_same_data_gives_the_same_bytes(tmp_path: Path, draw: type[Figure], suffix: str) -> None:
    save(draw(), tmp_path / f"a{suffix}")
    save(draw(), tmp_path / f"b{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


@pytest.mark.parametrize("draw", [levels, memory, overview])
def test_a_picture_in_a_page_follows_the_theme_and_scales(draw: type[Figure]) -> None:
    svg = inline_svg(draw(), "x", 'says "what" <it> shows')
    ET.fromstring(svg)
    opening = svg[: svg.index(">")]
    assert 'aria-label="says &quot;what&quot; &lt;it&gt; shows"' in svg.split("<", 2)[1]
    assert " width=" not in opening and " height=" not in opening and "viewBox" in opening
    named = set(re.findall(r"var\((--dm-[a-z0-9-]+),", svg, re.IGNORECASE))
    assert len(named) >= 5
    assert all(f"{name}:" in CSS for name in named)
    for colour in re.findall(r"(?<!, )#[0-9a-f]{6}", svg):
        assert colour in ("#ffffff", "#000000"), f"{colour} would stay the same in the dark"


def test_pictures_of_one_page_share_no_id() -> None:
    first, second = (set(re.findall(r'\bid="([^"]+)"', inline_svg(memory(), name, ""))) for name in ("a", "b"))
    assert first and not first & second
    svg = inline_svg(memory(), "a", "")
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', svg):
        assert f'id="{target}"' in svg


def lightness(colour: str) -> float:
    """CIE L* of #rrggbb."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return float(116 * np.cbrt(luminance) - 16)


def test_levels_differ_in_grey() -> None:
    for theme in ("light", "dark"):
        ramp = [lightness(getattr(look, theme)) for look in LEVELS.values()]
        assert all(abs(a - b) >= 6 for a, b in pairwise(ramp)), (theme, ramp)


def test_users_differ_without_colour() -> None:
    """Each has a mark of its own in the map, and a row of its own under the levels."""
    marks = [look.mark for look in (*USERS.values(), ATTACHING)]
    assert len(set(marks)) == len(marks) and set(marks) - {""} == set(MARKS)
    svg = inline_svg(levels(14), "x", "")
    assert all(f">{look.label}<" in svg for look in USERS.values())


@pytest.mark.parametrize("n_gib", [1, 2, 24, 25, 300, 4096])
def test_any_machine_has_a_map_of_bounded_size(n_gib: int) -> None:
    figure = memory(n_gib)
    width, height = figure.get_size_inches()
    assert width < 9 and height < 12
    assert len(inline_svg(figure, "x", "")) < 700_000


def test_a_split_frame_is_never_lost_in_a_coarse_map() -> None:
    found = np.full(512 * 1024, LEAF_2M, np.uint8)
    found[77_777] = USER_STATES["bpf"]
    assert USERS["bpf"].light in inline_svg(map_figure(found, np.array([], np.int64)), "x", "")


def test_what_our_recorder_split_while_attaching_is_an_entry_of_the_legend() -> None:
    assert STATE_LOOKS[SPLIT_ATTACHING] is ATTACHING
    found = states(4)
    assert "while attaching" not in words(inline_svg(map_figure(found, np.array([1])), "x", ""))
    found[20:22] = SPLIT_ATTACHING
    text = words(inline_svg(map_figure(found, np.array([1])), "x", ""))
    assert "split by our recorder while attaching: 2" in text and "4K before the recording: 9" in text


def test_holes_are_left_out() -> None:
    found = np.full(512 * 4, HOLE, np.uint8)
    found[512 * 3 :] = LEAF_2M
    svg = inline_svg(map_figure(found, np.array([], np.int64)), "x", "")
    assert ">3<" in svg and ">1<" not in svg, "addresses in GiB"


def words(svg: str) -> str:
    return " ".join(re.findall(r">([^<>]+)</text>", svg))


def test_the_overview_says_it_alone() -> None:
    """What happened, to which memory with its unit, and whose doing it was."""
    text = words(inline_svg(overview(), "x", ""))
    for part in (
        "in 10 seconds, 1 of the direct map's 2M entries",
        "physical address [GiB]",
        "split by BPF: 1",
        "seconds since",
        "0 unexplained",
    ):
        assert part in text, part


def test_axes_have_units() -> None:
    for figure in (levels(), memory(), overview()):
        for axes in figure.axes:
            for label in (axes.get_xlabel(), axes.get_ylabel()):
                assert not label or "[" in label or "seconds" in label, label


def test_the_picture_says_a_size_as_the_sentence_beside_it_does() -> None:
    of_4k = np.array([6656, 56_900])
    over_time = LevelsOverTime(np.array([0.0, 1.0]), np.array([GIGA, GIGA]), 3 * GIGA - of_4k, of_4k)
    nobody = SplitsOverTime(np.array([]), np.array([], dtype=object), np.array([], dtype=bool))
    text = words(inline_svg(levels_figure(over_time, nobody, 2.0), "x", ""))
    assert f"4K  {size(6656)} → {size(56_900)}" in text
    assert (size(6656).split()[-1], size(56_900).split()[-1]) == ("MiB", "MiB"), "one unit for one thing"


def test_moments_that_matter_are_named() -> None:
    flat = LevelsOverTime(np.array([0.0]), np.array([4 * GIGA]), np.array([0]), np.array([0]))
    splits = SplitsOverTime(np.array([1.0]), np.array(["ftrace"], dtype=object), np.array([True]))
    moments = Moments(lost=[(2.0, 3.0)], came_and_went=[(5.0, "128 MiB added")])
    text = words(inline_svg(levels_figure(flat, splits, 10.0, moments), "x", ""))
    for part in ("1G split by ftrace", "changes lost", "128 MiB added"):
        assert part in text
    many = SplitsOverTime(np.arange(200) / 20, np.array(["bpf"] * 200, dtype=object), np.ones(200, bool))
    text = words(inline_svg(levels_figure(flat, many, 10.0), "x", ""))
    assert "and 194 more" in text and text.count("1G split by BPF") == 6


def test_nothing_split_is_said_and_drawn() -> None:
    none = SplitsOverTime(np.array([]), np.array([], dtype=object), np.array([], dtype=bool))
    flat = LevelsOverTime(np.array([0.0]), np.array([GIGA]), np.array([0]), np.array([0]))
    assert "nobody split anything" in inline_svg(levels_figure(flat, none, 0.0), "x", "")
    inline_svg(map_figure(np.zeros(0, np.uint8), np.array([], np.int64)), "x", "")


def test_an_unknown_user_is_drawn_as_other() -> None:
    splits = SplitsOverTime(np.array([1.0]), np.array(["martian"], dtype=object), np.array([False]))
    flat = LevelsOverTime(np.array([0.0]), np.array([GIGA]), np.array([0]), np.array([0]))
    svg = inline_svg(levels_figure(flat, splits, 2.0), "x", "")
    assert "martian" not in svg and ">other<" in svg


def zone(name: str, blocks: list[list[int]]) -> FreeBlocks:
    return FreeBlocks(0, name, np.arange(len(blocks)) * 10**9, np.array(blocks, np.int64))


def test_free_memory_is_drawn_by_the_size_of_its_blocks() -> None:
    normal = zone("Normal", [[0] * 9 + [512, 256], [4096] * 5 + [64] * 4 + [512, 0]])
    figure = free_figure([normal, zone("DMA", [[1] + [0] * 10] * 2)], 0, 1.0)
    assert figure is not None
    svg = inline_svg(figure, "x", "")
    ET.fromstring(svg)
    assert "Normal, node 0" in svg and "(1 zone with less left out)" in svg
    sizes = {"2M and more": 1 << 18, "128 KiB to 1 MiB": 30 << 10, "up to 64 KiB": 124 << 10}
    for name, n_pages in sizes.items():
        assert f"{name}: {size(n_pages)}" in svg, "as the rest of the page says it"
    assert size(124 << 10).endswith("MiB")
    for colour in re.findall(r"(?<!, )#[0-9a-f]{6}", svg):
        assert colour in ("#ffffff", "#000000"), f"{colour} would stay the same in the dark"


def test_free_memory_of_a_long_recording_and_many_nodes_stays_a_small_picture() -> None:
    one = FreeBlocks(0, "Normal", np.arange(90_000) * 10**9, np.full((90_000, 11), 7, np.int64))
    figure = free_figure([replace(one, node=node) for node in range(9)], 0, 9e4)
    assert figure is not None
    svg = inline_svg(figure, "x", "")
    assert len(svg) < 1_000_000 and svg.count("free [GiB]") == 4 and "(5 zones with less left out)" in svg


def test_where_nothing_is_known_of_free_memory_nothing_is_drawn() -> None:
    assert free_figure([], 0, 1.0) is None
    assert free_figure([zone("DMA", [[0] * 11])], 0, 1.0) is None


def test_many_splits_stay_a_small_picture() -> None:
    assert len(inline_svg(levels(50_000), "x", "")) < 1_000_000
