"""Records a trace of a load in a guest, and brings it back with an account of how it came about."""

from __future__ import annotations

import datetime
import json
import shlex
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.vm import cache, job, machine
from tests.vm.errors import GuestLost, LabError

# Each is tests/vm/loads/NAME.py; and what it needs of the machine.
LOADS = {
    "churn": machine.Needs(),
    "bpf": machine.Needs(),
    "system": machine.Needs(),
    "quiet": machine.Needs(),
    "counted": machine.Needs(),
    "moments": machine.Needs(),
    "drm": machine.Needs(),
    "decoy": machine.Needs(monitor=True, cpu="vendor=GenuineIntel"),
    "kexec": machine.Needs(vmlinuz=True),
    "hotplug": machine.Needs(slots_mb=2048, monitor=True),
    "rules": machine.Needs(),
    "users": machine.Needs(),
}
LAB_JSON = "lab.json"

# The trace is written on the guest's own disk: a 9p share cannot mmap, and would take the host's
# speed into the recording. A recorder that failed may leave a trace worth looking at, so it is
# copied in any case.
_SCRIPT = """\
uname -a >/out/uname
head -n 1000 /proc/cmdline >/out/cmdline
{recorder}
status=$?
if [ -d /var/tmp/trace ]; then cp -r /var/tmp/trace /out/trace || status=1; fi
if [ -e /var/tmp/load.json ]; then cp /var/tmp/load.json /out/load.json; fi
sync
exit $status
"""


@dataclass(frozen=True)
class Recording:
    """What is to be recorded."""

    load: str
    seed: int
    target: Path
    force: bool = False
    aged: bool = False
    recorder_args: list[str] = field(default_factory=list)
    load_args: list[str] = field(default_factory=list)

    @property
    def load_argv(self) -> list[str]:
        """The load's command in the guest."""
        script = f"/repo/tests/vm/loads/{self.load}.py"
        argv = ["python3", script, "--seed", str(self.seed), "--stats", "/var/tmp/load.json"]
        return [*argv, *self.load_args]

    @property
    def recorder_argv(self) -> list[str]:
        """The recorder's command in the guest."""
        argv = ["python3", "-m", "collect", "record", "-o", "/var/tmp/trace", *self.recorder_args]
        return [*argv, "--", *self.load_argv]


def check_target(target: Path, *, force: bool) -> None:
    """Refuse, before anything is booted, to write over what is there."""
    if target.exists() and not force:
        raise LabError(f"{target} exists already. Give another -o DIR, or --force to replace it.")
    if target.exists() and any(target.iterdir()) and not (target / LAB_JSON).exists():
        raise LabError(
            f"{target} holds no {LAB_JSON}, so it is no recording of the lab: not replacing it.\n"
            "Give another -o DIR, or remove it yourself."
        )


def run(recording: Recording, prepared: job.Job) -> int:
    """Record; returns the recorder's exit status. The target is complete or not there."""
    target = recording.target
    check_target(target, force=recording.force)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        script = _SCRIPT.format(recorder=shlex.join(recording.recorder_argv))
        status = job.run(
            replace(
                prepared,
                argv=["sh", "-c", script],
                out=work,
                hardware=prepared.hardware.with_needs(LOADS[recording.load]),
                systemd=prepared.systemd or recording.load == "system",
            )
        )
        trace = work / "trace"
        if not trace.is_dir():
            if status == 0:
                raise GuestLost("The recorder ended well and yet left no trace in the guest.")
            return status
        _account(recording, prepared, work, status)
        trace.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        trace.rename(target)
        cache.say(f"{'recorded' if status == 0 else 'FAILED, but kept'}: {target}")
        return status
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _account(recording: Recording, prepared: job.Job, work: Path, status: int) -> None:
    """Write lab.json beside the trace's own files."""

    def text(name: str) -> str | None:
        path = work / name
        return path.read_text(encoding="utf-8").strip() if path.exists() else None

    said = text("load.json")
    kernel = prepared.kernel
    told = {
        "kernel": {
            "release": kernel.release,
            "uname": text("uname"),
            "cmdline": text("cmdline"),
            "flavour": kernel.flavour,
            "suite": kernel.suite,
            "packages": kernel.versions,
            "headers": kernel.headers,
        },
        "userland": {
            "suite": prepared.userland.suite,
            "python": prepared.userland.python,
            "python3-bpfcc": prepared.userland.bcc,
        },
        "machine": {
            "qemu": machine.version(),
            "accel": prepared.hardware.accel,
            "memory_mb": prepared.hardware.memory_mb,
            "cpus": prepared.hardware.cpus,
            "la57": prepared.hardware.la57,
        },
        "load": {
            "name": recording.load,
            "argv": recording.load_argv,
            "seed": recording.seed,
            "aged": recording.aged,
            "statistics": json.loads(said) if said else None,
        },
        "recorder": {"argv": recording.recorder_argv, "status": status},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    (work / "trace" / LAB_JSON).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
