"""`sweep`: a policy over the values of its parameters, on the real samples."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from replay import sweep as sweeping
from replay.__main__ import main
from replay.run import run_policies
from replay.sweep import Sweep, sweep
from tests.machine import write_trace

SAMPLES = Path(__file__).parents[2] / "sample_traces"
CHURN = SAMPLES / "6.1-churn"
ORDER = "gfp-unmapped.refill-order"


@pytest.fixture(scope="module")
def found() -> Sweep:
    return sweep(CHURN, "gfp-unmapped", [f"{ORDER}=5:9:2", "gfp-unmapped.variant=posted,ideal"])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "t", 3, scale=0.1, kernel_style="5.10")


def test_a_point_is_what_run_says_with_that_setting(found: Sweep) -> None:
    assert [values for values, _ in found.points] == [
        (5, "posted"), (5, "ideal"), (7, "posted"), (7, "ideal"), (9, "posted"), (9, "ideal")
    ]  # fmt: skip
    names = [f"gfp-unmapped:refill-order={order},variant={variant}" for (order, variant), _ in found.points]
    for (_, row), alone in zip(found.points, run_policies(CHURN, names), strict=True):
        mine, other = row.result.to_json(), alone.to_json()
        assert mine.pop("policy") == "gfp-unmapped" and other.pop("policy") != "gfp-unmapped"
        assert mine == other


def test_golden_counts_of_smaller_refills(found: Sweep) -> None:
    split = {values: row.result.split_2m.to_json() for values, row in found.points}
    assert split[9, "posted"] == split[9, "ideal"] == [10, 10]
    # smaller refills can only take more of them, and what they take may lie anywhere
    assert split[9, "posted"][1] < split[7, "posted"][1] < split[5, "posted"][1]
    assert found.base.result.split_2m.to_json() == [141, 141]
    assert {v: row.saved["split_2m"].to_json() for v, row in found.points}[9, "posted"] == [131, 131]


def test_the_trace_is_decoded_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay import run

    opened = []
    monkeypatch.setattr(run, "open_trace", lambda path, real=run.open_trace: opened.append(path) or real(path))
    sweep(small, "gfp-unmapped+merge", [f"{ORDER}=9,3,9", "merge.global=ignored,kept"])
    assert opened == [small]


def test_values_come_once_and_in_the_order_given(small: Path) -> None:
    found = sweep(small, "gfp-unmapped+merge", [f"{ORDER}=9,3,9", "merge.global=kept"])
    assert [values for values, _ in found.points] == [(9, "kept"), (3, "kept")]
    assert found.policy == "gfp-unmapped+merge"
    assert [axis.unit for axis in found.axes] == ["(2^n pages)", ""]


def test_table_files_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"s{suffix}" for suffix in (".svg", ".png", ".pdf", ".csv", ".json")]
    command = ["sweep", str(CHURN), "--policy", "gfp-unmapped", "--over", f"{ORDER}=8,9"]
    assert main([*command, *(word for file in files for word in ("-o", str(file)))]) == 0
    out = capsys.readouterr().out
    assert out.isascii() and max(map(len, out.splitlines())) < 80
    lines = [line.split() for line in out.splitlines()]
    assert ["9", "10", "131", "6", "0-4", "27-31"] in lines
    assert ["none", "141", "0", "8", "3", "161"] in lines
    assert "its kernel has bpf_prog_pack" in " ".join(out.split())
    assert [file.read_bytes()[:4] for file in files[:3]] == [b"<?xm", b"\x89PNG", b"%PDF"]
    assert "gfp-unmapped.refill-order (2^n pages)" in files[0].read_text()
    rows = list(csv.DictReader(files[3].open(newline="")))
    assert [(row[ORDER], row["split_2m_hi"]) for row in rows] == [("8", "19"), ("9", "10")]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(files[4].read_text())
    assert printed["over"][0] == {
        "policy": "gfp-unmapped", "parameter": "refill-order", "unit": "(2^n pages)", "values": [8, 9]
    }  # fmt: skip
    assert [point["values"] for point in printed["points"]] == [{ORDER: 8}, {ORDER: 9}]


@pytest.mark.parametrize(
    "over",
    [
        ["gfp-unmapped.variant=posted,cover,ideal"],
        ["gfp-unmapped.variant=posted,cover", f"{ORDER}=5:9:1"],
        ["gfp-unmapped.variant=posted,cover", "gfp-unmapped.block-bit=sticky,cleared"],
    ],
)
def test_words_and_numbers_are_drawn_on_either_axis(small: Path, tmp_path: Path, over: list[str]) -> None:
    words = [word for text in over for word in ("--over", text)]
    picture = tmp_path / "s.svg"
    assert main(["sweep", str(small), "--policy", "gfp-unmapped", *words, "-o", str(picture)]) == 0
    text = picture.read_text()
    for one in over:
        name, _, values = one.partition("=")
        assert name in text
        assert ":" in values or all(value in text for value in values.split(","))


@pytest.mark.parametrize(
    ("policy", "arguments", "says"),
    [
        ("gfp-unmapped", ["--over", f"{ORDER}=10"], "'10'; give a number from 0 to 9 (as V1,V2,... or LO:HI:STEP)"),
        ("gfp-unmapped", ["--over", "gfp-unmapped.variant=odd"], "'odd'; give posted or cover or ideal"),
        ("gfp-unmapped", ["--over", "gfp-unmapped.variant=1:3:1"], "'1:3:1'; give posted or cover or ideal"),
        ("gfp-unmapped", ["--over", f"{ORDER}=9:0:1"], "with LO up to HI and a step of 1 or more"),
        ("gfp-unmapped", ["--over", f"{ORDER}=0:9:0"], "with LO up to HI and a step of 1 or more"),
        ("gfp-unmapped", ["--over", f"{ORDER}=0:999999999999:1"], "1000000000000 values, more than 256"),
        ("prog-pack", ["--over", "prog-pack.pages=1:256:1", "--over", "prog-pack.old-pack=yes,no"], "512 replays"),
        ("gfp-unmapped", ["--over", "gfp-unmapped.colour=red"], "it has: variant, refill-order, shrinker, block-bit"),
        ("none", ["--over", "none.colour=red"], "it has: none"),
        ("gfp-unmapped", ["--over", "prog-pack.pages=1"], "the policy replayed is gfp-unmapped; name a parameter of it"),
        ("gfp-unmapped", ["--over", "variant"], "such as gfp-unmapped.variant=posted,cover,ideal\n"),
        ("gfp-unmapped", ["--over", "refill-order=3,4"], f"such as {ORDER}=3,4\n"),
        ("none+merge", ["--over", "global=kept"], "such as merge.global=kept\n"),
        ("gfp-unmapped:variant=ideal", ["--over", "gfp-unmapped.variant=cover"], "is set already"),
        ("gfp-unmapped", ["--over", f"{ORDER}=1", "--set", f"{ORDER}=2"], "is set already"),
        ("gfp-unmapped", ["--over", f"{ORDER}=1", "--over", f"{ORDER}=2"], "given twice"),
        ("gfp-unmapped", ["--over", f"{ORDER}=1"] * 3, "--over is given 3 times"),
        ("magic", ["--over", f"{ORDER}=1"], "no policy is called 'magic'"),
        ("gfp-unmapped", ["--over", f"{ORDER}=1", "-o", "x.doc"], "ends in .svg"),
    ],
)  # fmt: skip
def test_one_clear_line_before_the_trace_is_read(
    policy: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "/nowhere", "--policy", policy, *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err, err


def test_merge_may_be_swept_where_the_policy_inside_is_set(small: Path) -> None:
    """Only what is set of the same part counts as set already."""
    found = sweep(small, "gfp-unmapped:requests=asked+merge", ["merge.global=ignored,kept"])
    assert len(found.points) == 2
    with pytest.raises(Exception, match="is set already"):
        sweep(small, "gfp-unmapped+merge:global=kept", ["merge.global=ignored,kept"])


def test_as_many_replays_as_allowed_are_allowed(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    monkeypatch.setattr(sweeping, "MAX_RUNS", 3)
    assert len(sweep(small, "gfp-unmapped", [f"{ORDER}=7:9:1"]).points) == 3
    with pytest.raises(Exception, match="more than 3"):
        sweep(small, "gfp-unmapped", [f"{ORDER}=6:9:1"])
