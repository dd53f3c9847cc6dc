"""A host of 4 TB with a tenth of its 2M frames split: a map takes a quarter of a gigabyte, and no answer more than one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.scaled_trace import wide_host

SAMPLE = Path(__file__).parents[2] / "sample_traces" / "7.2-churn"

PROGRAM = """
import contextlib, io, re, sys
from analyze.__main__ import main
with contextlib.redirect_stdout(io.StringIO()) as out:
    status = main(sys.argv[1:])
most = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
print(status, most * 1024, len(out.getvalue()))
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wide_host(SAMPLE, tmp_path_factory.mktemp("wide") / "trace", 4 << 40, 0.1)


@pytest.mark.parametrize("command", ["verify", "state", "timeline", "diff"])
def test_an_answer_takes_no_more_than_a_gigabyte(command: str, wide: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command, str(wide)], capture_output=True, text=True, check=True
    )
    status, most, printed = map(int, done.stdout.split())
    assert status == 0 and printed > 100
    assert most < 1 << 30
