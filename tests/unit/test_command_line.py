"""What the three programs say and leave with when something goes wrong outside of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
