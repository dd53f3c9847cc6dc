"""Completion in real shells: what bash and zsh offer at a Tab, typed at their prompts."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ("collect", "analyze", "replay")
SECONDS = 30


def script(program: str, shell: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", program, "completion", shell], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


INPUTRC = """
set show-all-if-ambiguous on
set completion-query-items 0
set page-completions off
"""
ZSHRC = """
autoload -U compinit; compinit -D -u
unsetopt list_ambiguous
LISTMAX=10000
"""
"""Both shells: one Tab completes and lists, and asks nothing."""


class Shell:
    """An interactive shell on a terminal of its own, in a directory with a trace, a file and nothing else."""

    def __init__(self, shell: str, folder: Path) -> None:
        start = ["bash", "--norc", "--noprofile", "-i"] if shell == "bash" else ["zsh", "-f", "-i"]
        (folder / "inputrc").write_text(INPUTRC)
        self._pid, self._fd = pty.fork()
        if self._pid == 0:
            os.chdir(folder / "here")
            os.environ |= {"PS1": "> ", "TERM": "dumb", "HISTFILE": "", "INPUTRC": str(folder / "inputrc")}
            os.execvp(start[0], start)
        self._seen = ""
        if shell == "bash":
            self._type(*(f"source {folder}/{program}.bash" for program in PROGRAMS))
        else:
            self._type(f"fpath=({folder}/zsh $fpath)", *ZSHRC.split("\n"))
        self.finish("")

    def _type(self, *lines: str) -> None:
        for line in lines:
            os.write(self._fd, f"{line}\r".encode())

    def _until(self, end: str) -> str:
        """Output up to `end`."""
        give_up = time.monotonic() + SECONDS
        while end not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0, give_up - time.monotonic()))
            assert ready, f"{end} did not come: {self._seen[-500:]!r}"
            self._seen += os.read(self._fd, 65536).decode(errors="replace")
        seen, _, self._seen = self._seen.partition(end)
        return seen + end

    def finish(self, seen: str) -> str:
        """Throw the typed line away, run another, and give all that was shown until then."""
        self._type("\x15echo the-end-$((40 + 2))")
        return seen + self._until("the-end-42")

    def offered(self, line: str, *expected: str) -> str:
        """Type a line and a Tab, and wait until all that is expected was shown after it; what was shown."""
        os.write(self._fd, f"{line}\t".encode())
        seen = ""
        for word in expected:
            if word not in seen:
                seen += self._until(word)
        return re.sub(r"\s+", " ", self.finish(seen))

    def close(self) -> None:
        os.close(self._fd)
        os.waitpid(self._pid, 0)


@pytest.fixture(scope="module", params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    name: str = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed: apt install {name}")
    folder = tmp_path_factory.mktemp(name)
    (folder / "zsh").mkdir()
    for program in PROGRAMS:
        at = folder / f"{program}.bash" if name == "bash" else folder / "zsh" / f"_directmap-{program}"
        at.write_text(script(program, name))
        subprocess.run([name, "-n", at], check=True)
    (folder / "here" / "quiet-trace").mkdir(parents=True)
    (folder / "here" / "quiet-notes").write_text("")
    shell = Shell(name, folder)
    yield shell
    shell.close()


def test_commands_are_offered(shell: Shell) -> None:
    shell.offered("directmap-analyze ", "summary", "verify", "timeline", "completion")
    shell.offered("directmap-collect rec", "record", "recover")


def test_one_command_is_completed(shell: Shell) -> None:
    shell.offered("directmap-collect sna", "snapshot")


def test_options_of_a_command_are_offered(shell: Shell) -> None:
    shown = shell.offered("directmap-collect record --", "--duration", "--live", "--snapshot-every")
    assert "--ring-bytes" not in shown, "an option for tests alone"


def test_values_of_an_option_are_offered(shell: Shell) -> None:
    shell.offered("directmap-collect record --pages ", "scoped", "all", "none")
    shell.offered("directmap-analyze who quiet-trace --by ", "process", "stack", "region")


def test_a_trace_is_a_directory(shell: Shell) -> None:
    assert "quiet-notes" not in shell.offered("directmap-analyze verify qui", "et-trace")
    assert "quiet-notes" not in shell.offered("directmap-analyze compare quiet-trace qui", "et-trace")


def test_a_file_is_offered_where_one_is_written(shell: Shell) -> None:
    shell.offered("directmap-analyze export quiet-trace -o quiet-", "notes", "trace")


def test_what_is_recorded_is_a_command(shell: Shell) -> None:
    shell.offered("directmap-collect record -o new -- mkfif", "mkfifo")


def test_policies_are_offered_by_name(shell: Shell) -> None:
    shell.offered("directmap-replay run quiet-trace --policy gfp", "gfp-unmapped")
