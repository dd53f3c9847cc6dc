"""The command: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from collect.trace import open_trace
from replay.__main__ import main
from replay.plots import png, svg
from replay.policies import POLICIES
from replay.run import run_policies
from tests.machine import write_trace


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trace(tmp_path_factory.mktemp("machine") / "t", 3, scale=0.1, kernel_style="5.10")


def refuse(value: str) -> None:
    raise ValueError(f"not strict JSON: {value}")


def test_table_on_stdout_is_narrow_and_says_what_it_must(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(trace)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(len(line) for line in out.splitlines()) < 80
    blocks = [line.split() for line in out.splitlines() if not line.startswith(" 2M") and line.startswith("      ")]
    assert [name for names in blocks for name in names if name in [*POLICIES, "none+merge"]] == [
        *POLICIES,
        "none+merge",
    ]
    assert "a __GFP_UNMAPPED cache" in out.split("\n\n")[0].replace("A __", "a __"), "the answer comes first"
    flat = " ".join(out.split())
    assert "an emulated machine" in flat
    assert "published results disagree" in flat
    assert "a-b:" in flat
    assert out.isascii()


def test_json_is_strict_and_holds_every_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(trace), "--policy", "none", "gfp-unmapped", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=refuse)
    results = printed["results"]
    assert printed["judgement"]["base"] == results[0]["split_2m"] and "frame" in printed["answer"]
    assert [r["policy"] for r in results] == ["none", "gfp-unmapped"]
    none = results[0]
    assert none["split_2m"][0] == none["split_2m"][1] > 0
    assert none["emulated"] is True
    assert len(none["series"]["t_s"]) == len(none["series"]["split_hi"]) <= 600


def test_output_is_written_once(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", str(trace), "-o", str(out)]) == 0
    names = ("saved", "split", "overview", "levels", "map", "free")
    pictures = {f"{name}{suffix}" for name in names for suffix in (".svg", ".pdf", ".png")}
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "report.json",
        "results.json",
        "results.txt",
    } | pictures
    page = (out / "report.html").read_text()
    assert "What a cache would have saved" in page and "Where in memory" in page, "report and replay in one page"
    assert (out / "split.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "results.txt").read_text() == capsys.readouterr().out
    assert main(["run", str(trace), "-o", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--force" in error
    assert main(["run", str(trace), "-o", str(out), "--force"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "/nowhere"], "no such directory"),
        (["run", "{trace}", "--set", "none.x=1"], "has no parameter"),
        (["run", "{trace}", "--users", "everybody"], "no user is called"),
        (["run", "{trace}", "--pressure", "often"], "SECONDS PAGES"),
        (["run", "{trace}", "--policy", "magic"], "choose from none, ungrouped, prog-pack"),
        (["run", "{trace}", "-o", "{trace}/manifest.json/x"], "cannot be written"),
    ],
)
def test_one_clear_line_and_status_2(
    arguments: list[str], says: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument.format(trace=trace) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_policies_are_listed_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policies"]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) < 80
    assert out.isascii()
    flat = " ".join(out.split())
    for policy in POLICIES.values():
        assert f"{policy.name}: {policy.title}" in flat
        for name, parameter in policy.parameters.items():
            assert f"{name}={parameter.default} [{parameter.values}]" in flat
            assert parameter.meaning in flat
    assert main(["policies", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out, parse_constant=refuse)["policies"]
    assert [p["name"] for p in listed] == list(POLICIES)
    gfp = next(p for p in listed if p["name"] == "gfp-unmapped")
    assert gfp["parameters"]["variant"]["choices"] == ["posted", "cover", "ideal"]


def test_whose_requests_are_served_and_under_which_pressure(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(trace), "--policy", "gfp-unmapped", "--json"]
    manifest = open_trace(trace).manifest
    often = f"{(manifest['ts_end_ns'] - manifest['ts_start_ns']) / 20e9:.12f}:64"
    assert main([*command, "--users", "modules", "--pressure", often, "--set", "gfp-unmapped.variant=cover"]) == 0
    (some,) = json.loads(capsys.readouterr().out)["results"]
    assert main(command) == 0
    (everybody,) = json.loads(capsys.readouterr().out)["results"]
    assert set(some["served_by_user"]) == {"module"}
    assert set(everybody["served_by_user"]) == set(everybody["requests_by_user"]) == set(some["requests_by_user"])
    assert some["requests"]["as_recorded"] == everybody["requests"]["served"] - some["requests"]["served"]
    assert some["pages_released"][0] > everybody["pages_released"][1] == 0
    assert some["parameters"]["variant"] == "cover"


def test_pictures(trace: Path) -> None:
    results = run_policies(trace)
    picture = svg(results)
    assert picture.startswith("<svg")
    assert all(name in picture for name in POLICIES)
    assert "aria-label" in picture
    assert png(results).startswith(b"\x89PNG")
