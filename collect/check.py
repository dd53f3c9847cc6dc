"""What a recording needs, whether it is there, and what mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from collect import privileges
from collect.btf import Btf
from collect.compiler import compile_program, import_bcc, stderr_to
from collect.counters import read_counters
from collect.errors import HostError
from collect.headers import kernel_headers
from collect.host import lockdown
from collect.journal import RESERVE_BYTES
from collect.kallsyms import Kallsyms
from collect.kcore import Kcore
from collect.probes import CHOKE_POINT, CPA_MEMBERS, Features, probe_features

__all__ = ["Finding", "findings", "would_work"]

INSTALL = {
    # of /etc/os-release: ID or ID_LIKE, and what installs bcc there
    "debian": "apt install python3-bpfcc",
    "ubuntu": "apt install python3-bpfcc",
    "fedora": "dnf install python3-bcc",
    "rhel": "dnf install python3-bcc",
    "suse": "zypper install python3-bcc",
    "arch": "pacman -S python-bcc",
}
ROOMY_BYTES = 1 << 30

RAW_TRACEPOINT = "RAW_TRACEPOINT_PROBE(mm_page_alloc) { return 0; }"
FENTRY = f"KFUNC_PROBE({CHOKE_POINT}) {{ return 0; }}"
KPROBE = "int trial(void *ctx) { return 0; }"


class Finding(NamedTuple):
    """One line of `directmap-collect check`.

    Attributes:
        what: was looked for.
        ok: it is there.
        found: what was found, or what is wrong.
        needed: a recording of changes cannot do without it.
        mend: what to do where it is not there: a command where there is one.
        pages: `record --only-pages` cannot do without it either.
    """

    what: str
    ok: bool
    found: str
    needed: bool
    mend: str = ""
    pages: bool = False


def would_work(rows: list[Finding]) -> dict[str, bool]:
    """Which recordings would work, by their command."""
    return {
        "record": all(row.ok for row in rows if row.needed),
        "record --only-pages": all(row.ok for row in rows if row.pages),
    }


def findings(directory: Path = Path()) -> list[Finding]:
    """Everything that a recording into `directory` needs on this machine, in the order in which it is needed."""
    rows = [_privileges(changes=True), _privileges(changes=False), _lockdown()]
    symbols, btf, features = None, None, None
    try:
        symbols = Kallsyms()
        rows.append(Finding("kernel symbols", True, "/proc/kallsyms", True, pages=True))
    except HostError as error:
        mend = "sudo sysctl kernel.kptr_restrict=1"
        rows.append(Finding("kernel symbols", False, str(error), True, mend, pages=True))
    try:
        btf = Btf()
        rows.append(Finding("kernel types", True, "/sys/kernel/btf/vmlinux", True))
    except HostError as error:
        mend = "boot a kernel of your distribution's (5.10 or later: CONFIG_DEBUG_INFO_BTF)"
        rows.append(Finding("kernel types", False, str(error), True, mend))
    if symbols and btf:
        try:
            features = probe_features(symbols, btf)
            rows += _features(features)
        except HostError as error:
            rows.append(Finding("probes", False, str(error), True, ONLY_PAGES))
    try:
        kcore = Kcore()
        rows.append(Finding("page tables", True, f"{kcore.paging_levels} levels, through /proc/kcore", True))
        kcore.close()
    except HostError as error:
        rows.append(Finding("page tables", False, str(error), True, ONLY_PAGES))
    rows += _programs()
    rows += [_locked_memory(), _settings(), _split_counters(), _room(directory)]
    return rows


ONLY_PAGES = "`record --only-pages` does without"


def _privileges(*, changes: bool) -> Finding:
    wanted = privileges.needed(changes=changes)
    lacking = privileges.missing(wanted)
    have = ", ".join(capability.label for capability in wanted if capability not in lacking)
    lack = ", ".join(capability.label for capability in lacking)
    found = f"uid {os.geteuid()}, has {have or 'none'}{f', lacks {lack}' if lack else ''}"
    what, mend = "privileges" if changes else "privileges, pages", f"run it with sudo, or {privileges.how(wanted)}"
    return Finding(what, not lacking, found, changes, mend, pages=not changes)


def _lockdown() -> Finding:
    mode = lockdown()
    mend = "boot without lockdown=confidentiality on the kernel's command line"
    return Finding("lockdown", mode != "confidentiality", mode, True, mend, pages=True)


def _features(features: Features) -> list[Finding]:
    layout = ", ".join(f"{member} {features.offsets[f'CPA_{macro}_OFFSET']}" for macro, member in CPA_MEMBERS.items())
    return [
        Finding("probes", True, ", ".join(features.signatures), True),
        Finding("struct cpa_data", True, layout, True),
        *(
            Finding(missing.name, False, f"{missing.why}; without it: {missing.costs}", False)
            for missing in features.missing
        ),
    ]


def _programs() -> list[Finding]:
    """bcc, and whether the kernel takes an empty program of each kind that a recording attaches."""
    try:
        bcc = import_bcc()
    except HostError as error:
        return [Finding("bcc", False, str(error), True, _install(), pages=True)]
    where = Path(str(bcc.__file__)).parent
    headers = kernel_headers()
    rows = [
        Finding("bcc", True, f"{getattr(bcc, '__version__', '?')} ({where})", True, pages=True),
        Finding("kernel headers", headers is not None, str(headers or "none; ours serve"), False),
    ]

    def attach(text: str, kprobe: bool = False) -> Callable[[], None]:
        def trial() -> None:
            bpf = compile_program(bcc, text, []).bpf
            try:
                if kprobe:
                    bpf.attach_kprobe(event=CHOKE_POINT, fn_name="trial")
            finally:
                bpf.cleanup()

        return trial

    without_kprobes = privileges.perf_events_refused() or "fentry does without, and counts what it misses"
    trials = (
        ("raw tracepoints", attach(RAW_TRACEPOINT), True, True, "record with --pages none"),
        ("fentry", attach(FENTRY), True, False, ONLY_PAGES),
        ("kprobes", attach(KPROBE, kprobe=True), False, False, without_kprobes),
    )
    for what, trial, needed, pages, mend in trials:
        try:
            with stderr_to([]):
                trial()
            rows.append(Finding(what, True, "an empty program was attached", needed, pages=pages))
        except Exception as error:  # bcc raises bare Exception for all that can go wrong
            reason = " ".join(str(error).split())[:300]
            if os.geteuid() == 0:  # bcc's guess at any EPERM
                reason = reason.replace("Need super-user privileges to run", "the kernel refuses it, to root too")
            reason = reason.removeprefix("the BPF programs do not load here: ").partition(
                "; `directmap-collect check`"
            )[0]
            rows.append(Finding(what, False, reason, needed, mend, pages=pages))
    return rows


def _install() -> str:
    """The command that installs bcc on this distribution."""
    try:
        text = Path("/etc/os-release").read_text(errors="replace")
    except OSError:
        text = ""
    pairs = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    names = f"{pairs.get('ID', '')} {pairs.get('ID_LIKE', '')}".replace('"', "").split()
    known = [INSTALL[name] for name in names if name in INSTALL]
    return (
        f"sudo {known[0]}"
        if known
        else "sudo apt install python3-bpfcc (Debian), sudo dnf install python3-bcc (Fedora)"
    )


def _locked_memory() -> Finding:
    needed = privileges.needed(changes=True)
    ok = privileges.Capability.SYS_RESOURCE not in needed
    found = "no limit that maps count against" if ok else "maps count against RLIMIT_MEMLOCK here, which is low"
    return Finding(
        "locked memory", ok or not privileges.missing(needed), found, True, "ulimit -l unlimited (as root)", pages=True
    )


def _settings() -> Finding:
    names = (
        "kernel/kptr_restrict",
        "kernel/perf_event_paranoid",
        "kernel/unprivileged_bpf_disabled",
        "net/core/bpf_jit_enable",
    )
    values = []
    for name in names:
        try:
            values.append(f"{name.rpartition('/')[2]} {Path('/proc/sys', name).read_text().strip()}")
        except OSError:
            continue
    jit = not any(value == "bpf_jit_enable 0" for value in values)
    return Finding("settings", jit, ", ".join(values), True, "sudo sysctl net.core.bpf_jit_enable=1 (fentry needs it)")


def _split_counters() -> Finding:
    counted = any(name.startswith("vmstat/") for name in read_counters())
    why = "none before 5.13: splits are checked against snapshots alone"
    return Finding("split counters", counted, "/proc/vmstat direct_map_*" if counted else why, False)


def _room(directory: Path) -> Finding:
    # Path.exists raises where a folder may not be looked into (before Python 3.12).
    existing = next(folder for folder in (directory, *directory.absolute().parents) if os.path.exists(folder))  # noqa: PTH110
    free = shutil.disk_usage(existing).free
    found = f"{free >> 20} MiB in {existing.absolute()}"
    return Finding(
        "disk", free >= 2 * RESERVE_BYTES, found + ("" if free >= ROOMY_BYTES else ", which is little"), True,
        "choose another -o, or make room", pages=True,
    )  # fmt: skip
