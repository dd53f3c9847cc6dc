"""What the three programs say and leave with when something goes wrong outside of them."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACE = Path(__file__).parents[2] / "sample_traces" / "5.10-bpf"

COMMANDS = {
    "analyze": ["info", str(TRACE), "--json"],
    "replay": ["policies", "--json"],
}


def command(program: str) -> list[str]:
    return [sys.executable, "-m", program, *COMMANDS[program]]


@pytest.mark.parametrize("program", ["analyze", "replay"])
def test_output_that_a_full_disk_refuses_is_one_line(program: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command(program), stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"directmap-{program}: standard output cannot be written (No space left on device); send it elsewhere\n"
    )


@pytest.mark.parametrize("program", ["analyze", "replay"])
def test_output_whose_reader_went_away_ends_quietly(program: str) -> None:
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as reader:
        reader.wait()
        done = subprocess.run(command(program), stdout=reader.stdin, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("program", ["analyze", "replay"])
def test_a_program_whose_output_is_closed_runs_to_its_end(program: str) -> None:
    shell = ["sh", "-c", 'exec "$@" >&-', "sh", *command(program)]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("program", ["collect", "analyze", "replay"])
def test_wrong_arguments_are_one_line(program: str) -> None:
    done = subprocess.run([sys.executable, "-m", program, "no-such"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"directmap-{program}: argument COMMAND: invalid choice: 'no-such'")
    assert done.stderr.count("\n") == 1


def refused(capsys: pytest.CaptureFixture[str], program: str, *arguments: str) -> str:
    """The one line with which arguments are refused, without the program's name."""
    with pytest.raises(SystemExit) as leaving:
        import_module(f"{program}.__main__").main(list(arguments))
    out, err = capsys.readouterr()
    assert (leaving.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.isascii()
    return err.removeprefix(f"directmap-{program}").rstrip()


@pytest.mark.parametrize(
    ("program", "arguments", "says"),
    [
        ("collect", ["snapshot", "--at", "5"], " snapshot: unrecognized arguments: --at 5; see directmap-collect snapshot --help"),
        ("analyze", ["pages", "X", "--at", "5"], " pages: unrecognized arguments: --at 5; see directmap-analyze pages --help"),
        ("analyze", ["--at", "info", "X"], ": unrecognized arguments: --at; see directmap-analyze --help"),
        ("replay", ["run", "X", "Y"], " run: unrecognized arguments: Y; see directmap-replay run --help"),
        ("replay", ["run", "X", "a\nb\u00e9"], r" run: unrecognized arguments: a?b\xe9; see directmap-replay run --help"),
    ],
)  # fmt: skip
def test_what_a_command_does_not_know_leads_to_the_help_of_that_command(
    program: str, arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, program, *arguments) == says


def test_moments_without_their_options_are_told_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert "10% 50%; moments are given as --from TIME --to TIME; see" in refused(
        capsys, "analyze", "diff", "X", "10%", "50%"
    )
    assert "--from TIME" not in refused(capsys, "analyze", "diff", "X", "--at", "50%")


@pytest.mark.parametrize("command", ["run", "compare"])
def test_a_trace_behind_policy_is_told_to_stand_before_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(capsys, "replay", command, "--policy", "none", "gfp-unmapped", str(TRACE), "--json")
    assert "arguments are required: DIR; " in told
    assert f"; --policy took {TRACE} for one of its values: put it before --policy; see" in told
    assert "took" not in refused(capsys, "replay", command, "--policy", "none", str(TRACE / "nowhere"))
    assert "took" not in refused(capsys, "replay", command, "--users", str(ROOT))
