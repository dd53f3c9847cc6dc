"""What a recording needs, whether it is there, and what mends it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from collect.btf import Btf
from collect.compiler import import_bcc
from collect.counters import read_counters
from collect.errors import HostError
from collect.host import lockdown
from collect.kallsyms import Kallsyms
from collect.kcore import Kcore
from collect.probes import probe_features

__all__ = ["Finding", "findings"]


class Finding(NamedTuple):
    """One line of `directmap-collect check`: what, whether it is there, what was found, whether recording needs it."""

    what: str
    ok: bool
    found: str
    needed: bool
    mend: str = ""


def findings() -> list[Finding]:
    """Everything a recording needs on this machine, in the order in which it is needed."""
    rows = [
        Finding("root", os.geteuid() == 0, f"uid {os.geteuid()}", True, "run it with sudo"),
        Finding("lockdown", lockdown() != "confidentiality", lockdown(), True, "boot without lockdown=confidentiality"),
    ]
    symbols, btf = None, None
    try:
        symbols = Kallsyms()
        rows.append(Finding("kernel symbols", True, "/proc/kallsyms", True))
    except HostError as error:
        rows.append(Finding("kernel symbols", False, str(error), True))
    try:
        btf = Btf()
        rows.append(Finding("kernel types", True, "/sys/kernel/btf/vmlinux", True))
    except HostError as error:
        rows.append(Finding("kernel types", False, str(error), True))
    if symbols and btf:
        try:
            features = probe_features(symbols, btf)
            rows.append(Finding("probes", True, ", ".join(features.signatures), True))
            rows += [Finding(m.name, False, f"{m.why}; without it: {m.costs}", False) for m in features.missing]
        except HostError as error:
            rows.append(Finding("probes", False, str(error), True))
    try:
        kcore = Kcore()
        rows.append(Finding("page tables", True, f"{kcore.paging_levels} levels, through /proc/kcore", True))
        kcore.close()
    except HostError as error:
        rows.append(Finding("page tables", False, str(error), True))
    try:
        bcc = import_bcc()
        rows.append(
            Finding("bcc", True, f"{getattr(bcc, '__version__', '?')} ({Path(str(bcc.__file__)).parent})", True)
        )
    except HostError as error:
        rows.append(Finding("bcc", False, str(error), True))
    counted = any(name.startswith("vmstat/") for name in read_counters())
    rows.append(
        Finding(
            "split counters",
            counted,
            "/proc/vmstat direct_map_*",
            False,
            "none before 5.13: splits are checked against snapshots alone",
        )
    )
    return rows
