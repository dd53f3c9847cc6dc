"""The command: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replay.__main__ import main
from replay.output import FILES
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
    head = out.splitlines()[0].split()
    assert head == list(POLICIES)
    flat = " ".join(out.split())
    assert "an emulated machine" in flat
    assert "published results disagree" in flat
    assert "a–b:" in flat


def test_json_is_strict_and_holds_every_policy(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(trace), "--policy", "none", "gfp-unmapped", "--json"]) == 0
    results = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert [r["policy"] for r in results] == ["none", "gfp-unmapped"]
    none = results[0]
    assert none["split_2m"][0] == none["split_2m"][1] > 0
    assert none["emulated"] is True
    assert len(none["series"]["t_s"]) == len(none["series"]["split_hi"]) <= 600


def test_output_is_written_once(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", str(trace), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
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
        (["run", "{trace}", "--policy", "magic"], "none, gfp-unmapped, prog-pack"),
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
    for policy in POLICIES.values():
        assert f"{policy.name}: {policy.title}" in out
        assert all(name in out for name in policy.parameters)
    assert main(["policies", "--json"]) == 0
    assert [p["name"] for p in json.loads(capsys.readouterr().out)] == list(POLICIES)


def test_pictures(trace: Path) -> None:
    results = run_policies(trace)
    picture = svg(results)
    assert picture.startswith("<svg")
    assert all(name in picture for name in POLICIES)
    assert "aria-label" in picture
    assert png(results).startswith(b"\x89PNG")
