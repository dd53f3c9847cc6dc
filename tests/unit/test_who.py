"""`who`: what it says of the real recordings, of our own share, and of what came before; and that it says it safely."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import analyze
from analyze.__main__ import main
from analyze.attribute import Attribution, attribute
from analyze.before_start import ATTACHING, KERNEL_IMAGE
from analyze.causes import By
from analyze.reconstruct import Rebuild, rebuild
from analyze.snapshots import load_snapshot
from analyze.who import STATES, Who, who
from analyze.words.who import cause_text
from collect.schema import ATTRS_HARDWARE, Level, Moment, Pte
from collect.trace import open_trace
from tests.machine import COLLECTOR, write_trace
from tests.machine.rewrite import rewrite, with_cell, with_manifest

SAMPLES = Path(__file__).parents[2] / "sample_traces"


@cache
def analysed(name: str) -> tuple[Rebuild, Attribution]:
    trace = open_trace(SAMPLES / name)
    rebuilt = rebuild(trace)
    return rebuilt, attribute(trace, rebuilt)


def sample(name: str, by: By = By.NAME) -> Who:
    return who(*analysed(name), by)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    lines = out.splitlines()
    assert max(map(len, lines)) < 80
    return lines


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "trace", 31, scale=0.1)


@pytest.mark.parametrize(
    ("name", "states", "splits"),
    [
        ("5.10-bpf", (2, 0, 10, 99), {"bpf": 98}),
        ("6.1-churn", (2, 0, 19, 133), {"secretmem": 54, "module": 46, "bpf": 26, "ftrace": 10, "kprobe": 5}),
        ("7.2-churn", (2, 10, 27, 112), {"module": 79, "secretmem": 50, "bpf": 7}),
    ],
)
def test_on_the_samples_most_frames_that_are_split_are_kept_by_nobody(
    name: str, states: tuple[int, ...], splits: dict[str, int]
) -> None:
    found = sample(name, By.USER)
    assert tuple(found.n_frames(state) for state in STATES) == states
    assert dict(zip(found.split_by["user"], found.split_by["n_2m"], strict=True)) == splits
    assert sum(states) == len(analysed(name)[0].final.split_frames())


def test_on_7_2_these_27_pages_of_usbcore_keep_4_frames_in_4k() -> None:
    found = sample("7.2-churn")
    first = found.steps.iloc[0]
    cause = found.causes.iloc[first["causes"][0]]
    assert (cause["user"], cause["cause"], first["healed"], first["pages"]) == ("module", "usbcore", 4, 27)
    assert found.steps["total"].iloc[-1] == 19
    pages = found.special[(found.special["name"] == "usbcore") & ~found.special["residue"]]
    assert set(pages["region_kind"]) == {"module"}
    assert (pages["region_freed_ns"] < 0).all()
    assert (pages["region_since_ns"] > 0).all()
    assert set(pages["comm"]) == {"modprobe"}


def test_on_6_1_four_pages_of_kprobes_keep_four_frames() -> None:
    found = sample("6.1-churn")
    first = found.steps.iloc[0]
    cause = found.causes.iloc[first["causes"][0]]
    assert (cause["user"], cause["cause"], first["healed"], first["pages"]) == ("kprobe", "(python3)", 4, 4)
    assert found.kept_by("own") == (2, 2)
    assert found.own_first == 2


def test_the_seven_packs_that_7_2_gave_back_left_their_frames_alike() -> None:
    """A pack is 2 MB and one frame; when it is freed, all its pages lack G, so one entry could map it as it is."""
    frames = sample("7.2-churn").frames
    packs = frames[(frames["split_user"] == "bpf") & (frames["state"] == "alike")]
    assert len(packs) == 7
    assert set(packs["n_residue"]) == {512}


def test_on_6_1_a_pack_is_scattered_over_frames() -> None:
    splits = sample("6.1-churn", By.REGION).split_by
    packs = splits[splits["user"] == "bpf"]
    assert len(packs) == 6
    assert packs["n_2m"].sum() == 26


@pytest.mark.parametrize("name", ["5.10-bpf", "6.1-churn", "7.2-churn"])
def test_pages_of_the_kernel_s_own_text_and_rodata_are_called_so(name: str) -> None:
    rebuilt, _ = analysed(name)
    special = sample(name).special
    image = special[special["name"] == KERNEL_IMAGE]
    assert len(image) > 200
    assert set(image["group"]) == {"fixed"}
    assert not (image["attrs"] & 2).any()
    first, end = rebuilt.trace.manifest["memory"]["rodata"]
    text = image[(image["pfn"] < first) | (image["pfn"] >= end)]
    assert (text["pfn"] < first).all()
    assert len(text) == {"5.10-bpf": 3, "6.1-churn": 2, "7.2-churn": 203}[name]


@pytest.mark.parametrize(("name", "frames"), [("5.10-bpf", 4), ("6.1-churn", 2), ("7.2-churn", 2)])
def test_frames_split_while_attaching_are_those_between_the_two_snapshots(name: str, frames: int) -> None:
    rebuilt, attribution = analysed(name)
    assert (attribution.frames["split_name"] == ATTACHING).sum() == frames
    before = rebuilt.snapshots.rows(Moment.BEFORE_ATTACH)
    assert before is not None
    split_before = {
        int(pfn) // 512
        for pfn, level, n in zip(before["pfn"], before["level"], before["n_leaves"], strict=True)
        if level == Level.K4
        for pfn in range(int(pfn), int(pfn + n))
    }
    assert frames == len(set(rebuilt.start.map.split_frames().tolist()) - split_before)


@pytest.mark.parametrize(("name", "came", "went"), [("5.10-bpf", 22, 21), ("6.1-churn", 13, 11), ("7.2-churn", 0, 0)])
def test_pages_that_came_while_attaching_nearly_all_go_when_we_detach(name: str, came: int, went: int) -> None:
    """Which is why they count as our own share."""
    rebuilt, _ = analysed(name)
    special = sample(name).special
    ours = special[(special["name"] == ATTACHING) & ~special["residue"]]
    assert set(ours["group"]) <= {"own"}
    after = load_snapshot(rebuilt.trace, rebuilt.snapshots, Moment.AFTER_DETACH)
    assert after is not None
    differ = after.map.attrs_of(ours["pfn"].to_numpy()) ^ ours["original"].to_numpy()
    ignored = np.uint64(ATTRS_HARDWARE | int(Pte.G))
    assert (len(ours), int((differ & ~ignored == 0).sum())) == (came, went)


def test_secret_pages_and_packs_leave_frames_behind_that_no_page_keeps() -> None:
    table = sample("7.2-churn", By.USER).split_by.set_index("user")
    now = {user: tuple(row) for user, row in table[["n_2m", "still", "kept", "residue", "alike"]].iterrows()}
    assert now == {"module": (79, 79, 18, 60, 1), "secretmem": (50, 50, 0, 50, 0), "bpf": (7, 7, 0, 0, 7)}


def test_what_was_asked_of_a_kworker_is_told_with_who_asked() -> None:
    splits = sample("7.2-churn").splits
    delayed = splits[splits["comm"].str.startswith("kworker/")]
    assert len(delayed) == 20
    assert set(delayed["for_comm"]) == {"modprobe"}
    by_process = sample("7.2-churn", By.PROCESS).split_by
    assert by_process["cause"].tolist() == ["modprobe", "python3", "python3"]


def test_our_own_share_stands_apart(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def own(directory: Path) -> tuple[int, tuple[int, int]]:
        trace = open_trace(directory)
        rebuilt = rebuild(trace)
        found = who(rebuilt, attribute(trace, rebuilt))
        assert not any("collector" in str(user) for user in found.causes.loc[found.causes["step"] >= 0, "user"])
        return int(found.split_by.loc[found.split_by["group"] == "own", "n_2m"].sum()), found.kept_by("own")

    splits, kept = own(source)
    assert kept[0] > 0
    nobody = with_manifest(source, tmp_path / "t", recorder={"pid": 1, "tgid": 1})
    assert own(nobody)[1][0] < kept[0]
    secrets = with_manifest(source, tmp_path / "u", recorder={"pid": 1201, "tgid": 1200})
    assert own(secrets)[0] > splits
    lines = printed(capsys, "who", source)
    assert sum("our recorder" in line for line in lines) >= 2
    assert COLLECTOR.comm not in "\n".join(lines)


@pytest.mark.parametrize("by", list(By))
def test_it_fits_a_terminal_by_every_axis(by: By, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "who", SAMPLES / "7.2-churn", "--by", str(by), "--top", "4")
    assert "  state    exact: 2,097,114 pages compared with the page tables" in lines
    assert "Split now: 151 frames of 2M (13 were before we came, 2 came while we attached)" in lines


def test_the_sentence_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "who", SAMPLES / "7.2-churn")
    assert "       4  these 27 pages keep 4 frames in 4K: module usbcore" in lines
    assert "      17  this 1 page keeps 1 frame in 4K: module nft_fib" in lines


def test_half_way_through_7_2_four_packs_live_and_their_frames_are_alike(capsys: pytest.CaptureFixture[str]) -> None:
    trace = analyze.open_trace(SAMPLES / "7.2-churn")
    found = trace.who("user", "50%")
    assert tuple(found.n_frames(state) for state in STATES) == (2, 6, 59, 25)
    packs = found.special[found.special["user"] == "bpf"]
    assert len(packs) == 4 * 512
    assert packs["frame"].nunique() == 4
    assert set(packs["region_kind"]) == {"bpf_pack"}
    assert (packs["region_freed_ns"] < 0).all()
    assert set(found.frames.loc[found.frames["frame"].isin(packs["frame"]), "state"]) == {"alike"}
    assert "bpf" not in set(found.causes["user"])
    lines = printed(capsys, "who", SAMPLES / "7.2-churn", "--at", "50%", "--by", "user")
    assert "      51  these 495 pages keep 26 frames in 4K, with 46 above: secretmem" in lines
    assert lines[0].endswith(", at 77.548 s of 155.095 s")


def test_at_the_start_nobody_has_split_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["who", "--json", str(SAMPLES / "6.1-churn"), "--at", "start"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_splits"] == 0
    assert found["frames"]["split"] == len(analysed("6.1-churn")[0].start.map.split_frames())
    assert {cause["group"] for cause in found["causes"]} == {"own", "fixed", "unknown"}


def test_stacks_are_printed_whole_wherever_they_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "who", SAMPLES / "6.1-churn", "--by", "stack", "--top", "100")
    found = sample("6.1-churn", By.STACK)
    text = " ".join(" ".join(lines).split())
    others = found.split_by[found.split_by["group"] != "own"]
    for stack in {*others["cause"], *found.causes.loc[found.causes["group"] == "known", "cause"]}:
        assert str(stack) in text
    (first, *_) = [at for at, line in enumerate(lines) if line.endswith("kprobe set_memory_ro < alloc_insn_page <..")]
    assert lines[first + 1 : first + 3] == [
        "          set_memory_ro < alloc_insn_page < __get_insn_slot <",
        "          arch_prepare_optimized_kprobe",
    ]
    assert not any(line.startswith("          set_memory") for line in printed(capsys, "who", SAMPLES / "6.1-churn"))


def test_pages_that_nobody_we_saw_made_are_counted_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(" ".join(printed(capsys, "who", SAMPLES / "6.1-churn")).split())
    assert "2 frames are kept by pages of the kernel itself (its image, KFENCE); 0 of them by nothing else" in text
    assert (
        "9 frames are kept by pages made before the recording, by whom is not known; 7 of them by nothing else" in text
    )


def test_what_its_columns_count_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "who", SAMPLES / "6.1-churn")
    text = " ".join(" ".join(lines).split())
    assert "lack the global bit (lack G; below and in JSON: residue)" in text
    assert "  alone: frames that nothing else keeps" in lines
    assert "     133  kept by no page, some lack G (residue), which default leaves off" in lines


@pytest.mark.parametrize("moment", ["1000", "@5"])
def test_a_moment_that_the_trace_does_not_cover_is_one_line(moment: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["who", str(SAMPLES / "6.1-churn"), "--at", moment]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1


def test_json_is_strict_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert main(["who", "--json", str(SAMPLES / "7.2-churn")]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["frames"] == {"split": 151, "never_whole": 2, "alike": 10, "kept": 27, "residue": 112}
    step = found["healing"]["steps"][0]
    assert found["causes"][step["causes"][0]]["cause"] == "usbcore"
    assert step["healed"] == 4
    assert found["trust"]["exact"] is True
    page = next(page for page in found["special_pages"] if page["name"] == "usbcore")
    assert found["stacks"][str(page["stack_id"])]
    assert page["since_ns"] > 0


def test_names_from_a_trace_cannot_reach_the_terminal(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = open_trace(source).table("strings")
    texts = ["\x1b[31m<b>" + text + "\r\n\N{RIGHT-TO-LEFT OVERRIDE}é" * 20 for text in table["text"].to_pylist()]
    evil = table.from_pydict({"string_id": table["string_id"], "text": texts}, schema=table.schema)
    rewrite(source, tmp_path / "t", "strings", evil)
    for by in By:
        lines = printed(capsys, "who", tmp_path / "t", "--by", str(by))
        assert not any("\x1b" in line or "\r" in line for line in lines)


def test_a_trace_that_is_not_exact_or_lost_events_says_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = open_trace(source).table("snapshots").to_pandas()
    row = int(rows[(rows["moment"] == Moment.END) & (rows["level"] == 1)].index[0])
    wrong = with_cell(source, tmp_path / "t", "snapshots", "attrs", row, int(rows["attrs"][row]) ^ 2)
    assert any(line.startswith("  state    in doubt: ") for line in printed(capsys, "who", wrong))
    lossy = with_manifest(source, tmp_path / "u", losses={"changes_ring_full": 3})
    lines = printed(capsys, "who", lossy)
    assert any("in doubt: 3 events lost, so splits are a lower bound" in line for line in lines)
    assert any("in doubt: 3 events lost that tell who" in line for line in lines)


def test_without_any_change_there_is_nothing_to_say(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = open_trace(source)
    for name in ("changes", "regions", "splits"):
        rewrite(source if name == "changes" else tmp_path / "t", tmp_path / "t", name, trace.table(name).slice(0, 0))
    lines = printed(capsys, "who", tmp_path / "t")
    assert "Split while recording: 0 entries of 2M, 0 of 1G" in lines
    assert any("nothing that we saw made keeps a frame" in line for line in lines)


def test_a_cause_that_is_cut_keeps_the_number_of_its_region() -> None:
    region = "bpf_prog_pack, bpf_pack 87123456789012"
    assert cause_text("bpf", region, 60) == f"bpf {region}"
    assert cause_text("bpf", region, 32) == "bpf bpf_prog_pa.. 87123456789012"
    assert cause_text("bpf", "set_memory_ro < bpf_prog_pack_alloc", 32) == "bpf set_memory_ro < bpf_prog_p.."


def test_special_pages_in_frames_that_nothing_keeps_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """1,075 keep a frame split, 1,078 there are."""
    assert main(["who", str(SAMPLES / "6.1-churn")]) == 0
    said = capsys.readouterr().out
    assert "1,075 pages" in said and "1,078 special pages in 20 frames" in said
    assert "  (3 of them in a frame that never was one entry)\n" in said
