"""What a recording may do and has to be able to do: Linux capabilities, asked for by name, and given up when attached.

Which are needed was found out by trying, on Debian's 5.10, 6.1 and 7.2 (tests/vm/guest/privileges.py).
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path

from collect.errors import HostError

__all__ = [
    "Capability",
    "Needed",
    "ask",
    "give_up",
    "held",
    "how",
    "missing",
    "needed",
    "perf_events_refused",
    "raise_memlock",
]


class Capability(IntEnum):
    """`include/uapi/linux/capability.h`."""

    CHOWN = 0
    DAC_OVERRIDE = 1
    DAC_READ_SEARCH = 2
    KILL = 5
    SYS_RAWIO = 17
    SYS_ADMIN = 21
    SYS_RESOURCE = 24
    SYSLOG = 34
    PERFMON = 38
    BPF = 39

    @property
    def label(self) -> str:
        """As capsh and setcap name it."""
        return f"cap_{self.name.lower()}"


Needed = dict[Capability, str]
"""Capabilities, and what each is for."""

VERSION_3 = 0x2008_0522
PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 38, 47
AMBIENT_CLEAR_ALL = 4
KCORE, KALLSYMS = Path("/proc/kcore"), Path("/proc/kallsyms")
MEMLOCK_BYTES = 256 << 20
"""More than all our maps and rings on any number of CPUs that was tried."""


def needed(*, changes: bool, statistics: bool = False) -> Needed:
    """What a recording on this machine needs, of what not every process may do.

    Args:
        changes: record changes and regions, not page events alone.
        statistics: read the run time of BPF programs (--max-overhead).
    """
    wanted = {
        Capability.BPF: "load programs and maps",
        Capability.PERFMON: "let them read kernel memory, and attach them",
    }
    if _addresses_hidden():
        wanted[Capability.SYSLOG] = "see addresses in /proc/kallsyms"
    if changes:
        wanted[Capability.SYS_RAWIO] = "open /proc/kcore"
        if _is_anothers(KCORE):
            wanted[Capability.DAC_READ_SEARCH] = "open /proc/kcore, which is root's"
    if _memlock_counts():
        wanted[Capability.SYS_RESOURCE] = "raise the limit of locked memory, which maps count against before 5.11"
    if statistics:
        wanted[Capability.SYS_ADMIN] = "have the kernel time BPF programs (--max-overhead)"
    elif not changes:
        wanted[Capability.SYS_ADMIN] = "see frame numbers in /proc/self/pagemap, and RAM in /proc/iomem"
    return wanted


def held() -> frozenset[Capability]:
    """The effective capabilities of this process."""
    effective, _ = _get()
    return frozenset(capability for capability in Capability if effective >> capability & 1)


def missing(wanted: Needed) -> Needed:
    """Those of `wanted` that this process lacks."""
    have = held()
    return {capability: what for capability, what in wanted.items() if capability not in have}


def ask(wanted: Needed, doing: str = "recording") -> None:
    """Raises HostError naming each capability that is lacking, and how to get it."""
    lacking = missing(wanted)
    if lacking:
        names = ", ".join(f"{c.label.upper()} ({what})" for c, what in lacking.items())
        raise HostError(f"{doing} needs {names}: run it as root (sudo), or as any user with `{how(wanted)}`")


def how(wanted: Needed, command: str = "directmap-collect ...") -> str:
    """The command that runs `command` as the user who calls it, holding just the capabilities that are needed."""
    names = ",".join(f"+{capability.name.lower()}" for capability in wanted)
    return (
        "sudo setpriv --reuid=$(id -u) --regid=$(id -g) --init-groups "
        f"--inh-caps={names} --ambient-caps={names} {command}"
    )


def raise_memlock() -> None:
    """Lift the limit of locked memory, against which maps count before 5.11 ("bpf: Switch to memcg-based memory accounting")."""
    for limit in (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            return
        except (ValueError, OSError):
            continue


def give_up(directory: Path, *, kprobes: bool, hotplug: bool, command: bool) -> frozenset[Capability]:
    """When everything is attached: give up all that the rest does not need, for good; what is kept.

    Under sudo, also go on as whoever called it: every thread of this process loses root by that (setresuid(2) of the C
    library), and all but this one and those that it starts their capabilities too.

    Args:
        directory: of the trace, which has to stay writable.
        kprobes: are attached: bcc looks into tracefs, which is root's, to detach them.
        hotplug: is watched: /proc/kcore knows of memory that came when it is opened anew (fs/proc/kcore.c, open_kcore).
        command: a child runs with the privileges of before, and may have to be ended.
    """
    kept = {Capability.BPF: "read maps and set flags in them (before 5.19 for any use of bpf(2))"}
    if _addresses_hidden():
        kept[Capability.SYSLOG] = "follow modules and BPF programs in /proc/kallsyms"
    if command:
        kept[Capability.KILL] = "end the command"
    became_caller = _become_caller(directory)
    if hotplug:
        kept[Capability.SYS_RAWIO] = "read /proc/kcore anew when memory comes or goes"
    if (kprobes or hotplug) and os.geteuid() != 0:
        kept[Capability.DAC_READ_SEARCH] = "look into tracefs to detach kprobes, open /proc/kcore"
    if not became_caller and _must_override(directory):
        kept |= {Capability.DAC_OVERRIDE: "write the trace", Capability.CHOWN: "give it to whoever called sudo"}
    _, permitted = _get()
    keep = frozenset(capability for capability in kept if permitted >> capability & 1)
    _keep_only(keep)
    return keep


def _become_caller(directory: Path) -> bool:
    """Under sudo, become whoever called it, keeping capabilities; False where there is none, or that user cannot go on."""
    if os.geteuid() != 0 or not int(os.environ.get("SUDO_UID", "0")):
        return False
    uid, gid = int(os.environ["SUDO_UID"]), int(os.environ.get("SUDO_GID", os.environ["SUDO_UID"]))
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([gid])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        able = os.access(directory, os.W_OK | os.X_OK, effective_ids=True) and _code_is_readable()
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
    if not able:
        return False
    _prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    return True


def _code_is_readable() -> bool:
    """Python and we may lie in root's own home, and some modules are imported late."""
    return all(os.access(file, os.R_OK, effective_ids=True) for file in (os.__file__, __file__))


def _must_override(directory: Path) -> bool:
    """Whether root writes here by privilege only: under sudo, where the trace is the caller's, or in another's directory."""
    return os.geteuid() == 0 and ("SUDO_UID" in os.environ or directory.stat().st_uid != 0)


def _keep_only(kept: Iterable[Capability]) -> None:
    _, permitted = _get()
    left = sum(1 << capability for capability in set(kept)) & permitted
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_CAP_AMBIENT, AMBIENT_CLEAR_ALL)
    # struct __user_cap_data_struct twice: effective, permitted, inheritable
    _call("capset", _header(), (ctypes.c_uint32 * 6)(*(word for half in _halves(left) for word in (half, half, 0))))


def perf_events_refused() -> str | None:
    """Why kprobes cannot be attached where CAP_PERFMON should do, and what mends it; None where it does.

    perf_event_open(2), through which bcc attaches kprobes, asks for CAP_PERFMON. Debian's kernels know a
    perf_event_paranoid above 2, which is their default, and ask for CAP_SYS_ADMIN then (tried on 6.1).
    """
    paranoid = _sysctl("perf_event_paranoid")
    if paranoid <= 2 or Capability.SYS_ADMIN in held():
        return None
    return (
        f"kernel.perf_event_paranoid is {paranoid}, above 2 kprobes need CAP_SYS_ADMIN: "
        "sudo sysctl kernel.perf_event_paranoid=2"
    )


def _addresses_hidden() -> bool:
    """`kallsyms_show_value` (kernel/ksyms_common.c; kernel/kallsyms.c before 6.5), for one without CAP_SYSLOG."""
    return _sysctl("kptr_restrict") != 0 or _sysctl("perf_event_paranoid") > 1


def _is_anothers(path: Path) -> bool:
    """Whether a file is for its owner only, who is not us; what privileges could do is not asked."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid != os.geteuid() and not status.st_mode & 0o004


def _memlock_counts() -> bool:
    """Whether maps count against RLIMIT_MEMLOCK here, and more is needed than we may have.

    They do to 5.10, by `bpf_map_charge_init`; later they are charged to the cgroup.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY or hard >= MEMLOCK_BYTES:
        return False
    try:
        return b" bpf_map_charge_init\n" in KALLSYMS.read_bytes()
    except OSError:
        return False


def _sysctl(name: str) -> int:
    try:
        return int(Path("/proc/sys/kernel", name).read_text())
    except (OSError, ValueError):
        return 2


def _get() -> tuple[int, int]:
    """Effective and permitted capabilities of this thread, as bits."""
    data = (ctypes.c_uint32 * 6)()
    _call("capget", _header(), data)
    return data[0] | data[3] << 32, data[1] | data[4] << 32


def _halves(bits: int) -> tuple[int, int]:
    return bits & 0xFFFF_FFFF, bits >> 32


def _header() -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 2)(VERSION_3, 0)


def _prctl(option: int, argument: int) -> None:
    _call("prctl", option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def _call(name: str, *arguments: object) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise HostError(f"{name}: {os.strerror(number)}; cannot handle capabilities on this system")
