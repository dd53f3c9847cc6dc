"""Capabilities: what is lacking is named with the way to get it; what is not needed any more is given up for good."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from collect import privileges
from collect.errors import HostError
from collect.privileges import Capability, ask, held, how, missing, needed

ROOT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="starts as root: run make test as root")
USER = 12345


def python(code: str, *, sudo_uid: int | None = None) -> dict[str, str]:
    """What /proc/self/status says at the end of a process that ran `code`, and whatever it printed as KEY:\\tVALUE."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUDO_")}
    if sudo_uid is not None:
        environment |= {"SUDO_UID": str(sudo_uid), "SUDO_GID": str(sudo_uid)}
    code = f"from pathlib import Path; import os; from collect.privileges import *\n{code}\nprint(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)


def test_what_is_held_is_what_proc_says() -> None:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    effective = int(line.split()[1], 16)
    assert held() == {capability for capability in Capability if effective >> capability & 1}


def test_changes_need_kcore_and_page_events_alone_do_not() -> None:
    changes, pages = needed(changes=True), needed(changes=False)
    assert {Capability.BPF, Capability.PERFMON} <= set(changes) & set(pages)
    assert Capability.SYS_RAWIO in changes and Capability.SYS_RAWIO not in pages


def test_what_is_lacking_is_named_with_its_use_and_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "held", lambda: frozenset({Capability.BPF}))
    wanted = {Capability.BPF: "load programs", Capability.SYS_RAWIO: "open /proc/kcore"}
    assert missing(wanted) == {Capability.SYS_RAWIO: "open /proc/kcore"}
    with pytest.raises(HostError) as caught:
        ask(wanted)
    said = str(caught.value)
    assert "needs CAP_SYS_RAWIO (open /proc/kcore): run it as root (sudo)" in said
    assert "CAP_BPF" not in said.partition(":")[0]
    assert how(wanted) in said and "\n" not in said


@pytest.mark.parametrize(("paranoid", "admin", "refused"), [(3, False, True), (3, True, False), (2, False, False)])
def test_a_debian_kernel_that_refuses_perf_events_is_told_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, paranoid: int, admin: bool, refused: bool
) -> None:
    monkeypatch.setattr(
        privileges, "held", lambda: frozenset({Capability.SYS_ADMIN} if admin else {Capability.PERFMON})
    )
    monkeypatch.setattr(privileges, "_sysctl", {"perf_event_paranoid": paranoid}.__getitem__)
    said = privileges.perf_events_refused()
    assert (said is not None) == refused
    if said:
        assert said.startswith("kernel.perf_event_paranoid is 3") and said.endswith(
            "sudo sysctl kernel.perf_event_paranoid=2"
        )


def test_where_nothing_is_lacking_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privileges, "held", lambda: frozenset(Capability))
    ask(needed(changes=True, statistics=True))


@as_root
def test_root_keeps_what_the_rest_needs_and_nothing_else(tmp_path: Path) -> None:
    status = python(f"give_up(Path({str(tmp_path)!r}), kprobes=True, hotplug=False, command=True)")
    kept = {Capability.BPF, Capability.SYSLOG, Capability.KILL}
    assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) & sum(1 << capability for capability in kept)
    assert int(status["CapPrm"], 16) >> Capability.BPF & 1
    assert int(status["CapPrm"], 16) >> Capability.SYS_ADMIN & 1 == 0
    assert status["NoNewPrivs"] == "1"


@as_root
@pytest.mark.parametrize("kprobes", [False, True])
def test_under_sudo_it_goes_on_as_the_caller(tmp_path: Path, kprobes: bool) -> None:
    """Files come out as theirs, and root is gone."""
    directory = tmp_path / "trace"
    directory.mkdir()
    os.chown(directory, USER, USER)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(0o755)
    code = (
        f"directory = Path({str(directory)!r})\n"
        "from collect.durable import write_json\n"
        "from collect import privileges; privileges._code_is_readable = lambda: True  # the tests' Python may be root's\n"
        f"give_up(directory, kprobes={kprobes}, hotplug=False, command=False)\n"
        "write_json(directory / 'manifest.json', {})"
    )
    status = python(code, sudo_uid=USER)
    assert status["Uid"].split() == [str(USER)] * 4 and status["Gid"].split() == [str(USER)] * 4
    look = 1 << Capability.DAC_READ_SEARCH if kprobes else 0
    assert int(status["CapPrm"], 16) & ~(1 << Capability.BPF | 1 << Capability.SYSLOG) == look
    assert int(status["CapEff"], 16) >> Capability.BPF & 1
    made = (directory / "manifest.json").stat()
    assert (made.st_uid, made.st_mode & 0o777) == (USER, 0o600)


@as_root
def test_where_the_caller_cannot_write_it_stays_root_and_can(tmp_path: Path) -> None:
    """As in a directory below root's own home."""
    closed = tmp_path / "closed"
    directory = closed / "trace"
    directory.mkdir(parents=True)
    os.chown(directory, USER, USER)
    directory.chmod(0o700)
    closed.chmod(0o700)
    code = (
        f"directory = Path({str(directory)!r})\n"
        "give_up(directory, kprobes=False, hotplug=False, command=False)\n"
        "from collect.durable import write_json; write_json(directory / 'manifest.json', {})"
    )
    status = python(code, sudo_uid=USER)
    assert status["Uid"].split() == ["0"] * 4
    assert int(status["CapPrm"], 16) >> Capability.SYS_ADMIN & 1 == 0
    assert (directory / "manifest.json").stat().st_uid == USER
