"""`compare`: traces and policies side by side, on the real samples and on made ones that differ in one thing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from analyze.reconstruct import rebuild
from collect.schema import Level
from collect.trace import open_trace
from replay.__main__ import main
from replay.measures import MEASURES, saved
from replay.results import Interval
from replay.run import run_policies
from replay.side_by_side import SideBySide, compare
from tests.machine import write_trace
from tests.machine.rewrite import with_manifest, without_rows

SAMPLES = Path(__file__).parents[2] / "sample_traces"
BPF, CHURN = SAMPLES / "5.10-bpf", SAMPLES / "6.1-churn"
POLICIES = ("gfp-unmapped", "prog-pack", "gfp-unmapped:requests=asked+merge", "clairvoyant")


@pytest.fixture(scope="module")
def found() -> SideBySide:
    return compare([BPF, CHURN], POLICIES)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "t", 3, scale=0.1, kernel_style="5.10")


def test_a_row_is_what_run_says_of_that_trace_and_policy(found: SideBySide) -> None:
    assert [(row.trace, row.result.policy) for row in found.rows] == [
        (trace.name, policy) for trace in (BPF, CHURN) for policy in ("none", *POLICIES)
    ]
    for trace in (BPF, CHURN):
        alone = {result.policy: result.to_json() for result in run_policies(trace, ["none", *POLICIES])}
        for row in found.rows:
            if row.trace == trace.name:
                assert row.result.to_json() == alone[row.result.policy]


def test_saved_is_the_difference_to_what_was_recorded(found: SideBySide) -> None:
    by = {(row.trace, row.result.policy): row for row in found.rows}
    none = by["6.1-churn", "none"]
    assert {key: value.to_json() for key, value in none.saved.items()} == {m.key: [0, 0] for m in MEASURES}
    gfp = by["6.1-churn", "gfp-unmapped"]
    assert none.result.split_2m.to_json() == [141, 141]
    assert gfp.saved["split_2m"].to_json() == [141 - gfp.result.split_2m.hi, 141 - gfp.result.split_2m.lo]
    assert gfp.saved["idle_pages_peak"].hi < 0  # held, where nothing was held before
    # each frame that is split no more was split by somebody before
    total = gfp.saved_by_user
    assert sum(v.lo for v in total.values()) <= gfp.saved["split_2m"].hi
    assert sum(v.hi for v in total.values()) >= gfp.saved["split_2m"].lo
    # a kernel that has packs saves nothing by having packs
    assert {v.to_json() == [0, 0] for v in by["6.1-churn", "prog-pack"].saved.values()} == {True}


def test_what_makes_it_unfair_is_said(found: SideBySide, small: Path, tmp_path: Path) -> None:
    said = " ".join(found.doubts)
    assert "6.1-churn: its kernel has bpf_prog_pack, and `none` with it" in said
    assert "--against ungrouped" in said
    assert "rows with requests=asked begin from a kernel without bpf_prog_pack" in said
    assert "(5.10-bpf / 6.1-churn): bpf 1,024 / 6" in said
    assert "Memory differs" not in said and "lost" not in said and "5.10-bpf: its kernel" not in said
    # one thing at a time
    manifest = json.loads((small / "manifest.json").read_text())
    ranges = manifest["memory"]["ranges"]
    other = {
        "lost": with_manifest(small, tmp_path / "lossy", losses={"pages_ring_full": 7}),
        "was cut off": with_manifest(small, tmp_path / "cut", complete=False),
        "Memory differs in size": with_manifest(small, tmp_path / "smaller", memory={"ranges": [ranges[0], [ranges[1][0] + (1 << 16), ranges[1][1]], *ranges[2:]]}),
        "Some CPUs were emulated": with_manifest(small, tmp_path / "native", cpu={"emulated": False}),
        "Page events were not recorded alike": with_manifest(small, tmp_path / "all", sampling={"pages": "all"}),
    }  # fmt: skip
    splits = rebuild(open_trace(small)).splits
    row = int(splits.loc[splits["level"] == Level.M2, "row"].iloc[0])
    other["is not proven exact"] = without_rows(small, tmp_path / "without", "changes", [row])
    for words, trace in other.items():
        doubts = compare([small, trace], ["none"]).doubts
        assert [doubt for doubt in doubts if words in doubt], (words, doubts)
        assert len(doubts) == 1
    assert compare([small], ["gfp-unmapped"]).doubts == []


def test_against_another_policy_than_none(small: Path) -> None:
    found = compare([small], ["none", "gfp-unmapped"], against="grouped")
    assert found.against == "grouped"
    assert found.policies == ["grouped", "none", "gfp-unmapped"]
    grouped, none, _ = found.rows
    assert none.saved["split_2m"] == grouped.result.split_2m - none.result.split_2m
    assert none.saved["split_2m"].hi < 0


def test_identity_saves_nothing_though_its_bounds_are_wide(found: SideBySide) -> None:
    clairvoyant = next(row.result for row in found.rows if row.result.policy == "clairvoyant")
    measure = MEASURES[0]
    assert not clairvoyant.split_2m.exact
    assert saved(clairvoyant, clairvoyant, measure) == Interval(0, 0)


def test_the_table_is_narrow_ascii_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(BPF), str(CHURN), "--policy", *POLICIES]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert out.isascii() and max(map(len, lines)) < 80
    assert ["gfp-unmapped", "10", "131", "6", "0-4", "27-31"] in [line.split() for line in lines]
    assert len([line for line in lines if line.startswith("6.1-churn: Linux 6.1.0-56-amd64, 8.0 GiB")]) == 3
    assert any(line.split()[-5:] == ["bpf", "module", "kprobe", "ftrace", "secretmem"] for line in lines)


def test_files_by_suffix_and_json(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "out" / f"c{suffix}" for suffix in (".svg", ".png", ".pdf", ".csv", ".json")]
    command = ["compare", str(small), str(BPF), "--policy", "gfp-unmapped", "--json"]
    assert main([*command, *(word for file in files for word in ("-o", str(file)))]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [file.read_bytes()[:4] for file in files[:3]] == [b"<?xm", b"\x89PNG", b"%PDF"]
    assert "gfp-unmapped" in files[0].read_text() and "5.10-bpf" in files[0].read_text()
    assert json.loads(files[4].read_text()) == printed
    rows = list(csv.DictReader(files[3].open(newline="")))
    assert [(row["trace"], row["policy"]) for row in rows] == [
        ("t", "none"), ("t", "gfp-unmapped"), ("5.10-bpf", "none"), ("5.10-bpf", "gfp-unmapped")
    ]  # fmt: skip
    assert (rows[2]["split_2m_lo"], rows[2]["split_2m_hi"], rows[2]["saved_split_2m_lo"]) == ("98", "98", "0")
    assert [[row["idle_pages_peak_hi"] for row in rows]] == [
        [str(r["measures"]["idle_pages_peak"][1]) for r in printed["rows"]]
    ]
    assert main([*command, "-o", str(files[0])]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "-o", str(files[0]), "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{t}", "{t}"], "given twice"),
        (["{t}", "-o", "x.xls"], "ends in .svg, .png, .pdf, .csv, .json"),
        (["{t}", "--against", "magic"], "no policy is called 'magic'"),
        (["{t}", "--policy", "none", "--set", "gfp-unmapped.variant=cover"], "is not replayed"),
        (["{t}", "/nowhere", "--policy", "none"], "/nowhere: no such directory"),
        (["{t}", "--policy", *(f"gfp-unmapped:refill-order=9,variant={v}" for v in ("odd",))], "posted or cover"),
    ],
)
def test_one_clear_line_and_status_2(
    arguments: list[str], says: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(argument.format(t=small) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_the_number_of_replays_is_bounded(small: Path) -> None:
    with pytest.raises(Exception, match="1100 replays, more than 1000"):
        compare([small.parent / f"{i}" for i in range(550)], ["gfp-unmapped"])


def test_traces_of_one_name_are_told_apart_by_their_paths(small: Path, tmp_path: Path) -> None:
    other = with_manifest(small, tmp_path / "t")
    assert compare([small, other], ["none"]).traces == [str(small)[:57] + "..." if len(str(small)) > 60 else str(small),
        str(other)[:57] + "..." if len(str(other)) > 60 else str(other)]  # fmt: skip
