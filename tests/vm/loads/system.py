"""What a real system does by itself: services with BPF filters, drivers, tracers that come and go.

Wants systemd as the guest's init (``python3 -m tests.vm run --systemd``; ``record`` sees to it).
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads.module_cycle import Modules, unload
from tests.vm.loads.report import Report, parser

# What services of a distribution ask for: each line costs the kernel BPF programs of its kind.
_SANDBOXES = (
    ("IPAddressDeny=any", "IPAddressAllow=localhost"),
    ("IPAccounting=yes", "IPAddressDeny=10.0.0.0/8"),
    ("DevicePolicy=closed", "DeviceAllow=/dev/null rw", "DeviceAllow=/dev/rtc r"),
    ("PrivateDevices=yes", "ProtectKernelModules=yes", "ProtectKernelTunables=yes"),
    ("RestrictAddressFamilies=AF_UNIX AF_INET", "RestrictNamespaces=yes"),
    ("SystemCallFilter=@system-service", "SystemCallArchitectures=native"),
    ("SystemCallFilter=~@mount @debug", "MemoryDenyWriteExecute=yes", "LockPersonality=yes"),
    ("SocketBindDeny=any", "RestrictRealtime=yes"),
)
_TRACERS = (
    ("bpftrace", "-e", "kprobe:do_nanosleep { @[comm] = count(); }"),
    ("bpftrace", "-e", "tracepoint:syscalls:sys_enter_openat { @[comm] = count(); }"),
    ("bpftrace", "-e", "kfunc:vfs_read { @[comm] = count(); }"),
    ("perf", "stat", "-a", "-e", "sched:sched_switch,syscalls:sys_enter_read", "--", "sleep", "3"),
    ("perf", "record", "-a", "-e", "cpu-clock", "-o", "/tmp/perf.data", "--", "sleep", "3"),
)


class System:
    """The services and tracers that this load has started."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._services: list[str] = []
        self._tracers: list[subprocess.Popen[bytes]] = []

    def start_service(self, number: int, rng: random.Random) -> None:
        """Start a transient service under two of the sandboxes."""
        name = f"lab-{number}.service"
        command = ["systemd-run", "--quiet", f"--unit={name}", "--collect"]
        for sandbox in rng.sample(_SANDBOXES, 2):
            command += [f"--property={line}" for line in sandbox]
        if _run(*command, "sleep", "3600"):
            self._services.append(name)
            self._report.counts["services_started"] += 1
        else:
            self._report.counts["services_refused"] += 1

    def stop_services(self, keep: int) -> None:
        """Stop the eldest services until so many are left."""
        while len(self._services) > keep:
            _run("systemctl", "stop", self._services.pop(0))
            self._report.counts["services_stopped"] += 1

    def attach_tracer(self, number: int) -> None:
        """Start a tracer in the background; it is stopped when the next one starts."""
        self.detach_tracers()
        command = _TRACERS[number % len(_TRACERS)]
        if shutil.which(command[0]) is None:
            self._report.counts["tracers_missing"] += 1
            return
        quiet = subprocess.DEVNULL
        self._tracers.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet))
        self._report.counts[f"{command[0]}_attached"] += 1

    def detach_tracers(self) -> None:
        """Stop the tracers as a user would, with Ctrl-C."""
        for tracer in self._tracers:
            # bpftrace compiles for seconds under emulation before it attaches anything.
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(timeout=8)
            tracer.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                tracer.wait(timeout=15)
            tracer.kill()
            tracer.wait()
        self._tracers.clear()


def _run(*command: str) -> bool:
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=60, check=False)
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
    return done.returncode == 0


def main() -> int:
    """Run the load: forty services, a dozen drivers, five tracers at --scale 1."""
    options = parser(__doc__ or "", seconds=180).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("system", options)
    if not Path("/run/systemd/system").is_dir() or not _run("systemctl", "show-environment"):
        report.facts["without_systemd"] = True
    kinds = {"service": 40, "driver": 12, "trigger": 3, "tracer": 5}
    sequence = [kind for kind, times in kinds.items() for _ in range(round(times * options.scale))]
    rng.shuffle(sequence)
    modules = Modules(rng, largest=600_000)
    system = System(report)
    done: Counter[str] = Counter()
    with contextlib.suppress(KeyboardInterrupt):
        for kind in sequence:
            if report.out_of_time():
                break
            if kind == "service":
                system.start_service(done[kind], rng)
                if rng.random() < 0.3:
                    system.stop_services(10)
            elif kind == "driver":
                loaded = _run("modprobe", modules.name(done[kind]))
                report.counts["drivers_loaded" if loaded else "drivers_refused"] += 1
            elif kind == "trigger":
                triggered = _run("udevadm", "trigger") and _run("udevadm", "settle", "-t", "20")
                report.counts["udev_triggers" if triggered else "udev_failed"] += 1
            else:
                system.attach_tracer(done[kind])
            done[kind] += 1
            time.sleep(0.2)
    system.detach_tracers()
    system.stop_services(0)
    for number in range(done["driver"]):
        unload(modules.name(number))
    report.facts["steps"] = dict(done)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
