"""Runs the programs that the lab is made of, and turns their failures into readable errors."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.vm.errors import LabError

# Debian keeps depmod, mke2fs and debootstrap in sbin, which a user's PATH often lacks.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with sbin on the PATH and without a language of its own."""
    env = dict(os.environ)
    env["PATH"] = f"{env.get('PATH', '/usr/bin:/bin')}:{_SBIN}"
    env["LC_ALL"] = "C.UTF-8"
    env["DEBIAN_FRONTEND"] = "noninteractive"
    env.update(extra or {})
    return env


def find(program: str) -> str | None:
    """The path of a program, looked up in PATH and in sbin."""
    return shutil.which(program, path=environment()["PATH"])


def run(
    command: Sequence[str | Path],
    *,
    what: str,
    attempts: int = 1,
    cwd: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
) -> str:
    """Run a command and return its stdout. `what` says in an error what was being tried.

    `attempts` is for commands that talk to a mirror, which now and then cuts a connection.
    """
    argv = [str(word) for word in command]
    if find(argv[0]) is None:
        raise LabError(
            f"{what}: the program {argv[0]!r} is not installed.\n"
            "Install what the lab needs with: sudo python3 -m tests.vm setup"
        )
    for attempt in range(1, attempts + 1):
        done = subprocess.run(
            argv,
            cwd=cwd,
            env=environment(extra_env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
        if attempt < attempts:
            time.sleep(2 * attempt)
    tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
    raise LabError(
        f"{what}: failed with status {done.returncode}"
        + (f" after {attempts} attempts" if attempts > 1 else "")
        + f".\nThe command was: {shlex.join(argv)}\nIt ended with:\n{tail}"
    )
