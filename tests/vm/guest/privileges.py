"""Which capabilities a recording needs on the kernel that runs this, by trying: as a user with all of them, then less one.

Run as root in a guest. Prints one JSON object: each trial's exit status, last line and what the recorder said that it kept.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

USER = pwd.getpwnam("nobody").pw_uid
SECONDS = 900
PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
# What decides is the kernel, not our own question before it: that is left out where a capability is.
RECORD = """
import sys
from collect import __main__, recorder
if sys.argv[1] == "unasked":
    recorder.ask = lambda wanted: None
sys.exit(__main__.main(sys.argv[2:]))
"""


def as_user(capabilities: list[str]) -> list[str]:
    """What to put before a command that shall run as the user with these capabilities only."""
    names = ",".join(f"+{name}" for name in capabilities)
    who = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return ["setpriv", *who, f"--inh-caps={names}", f"--ambient-caps={names}"]


def trial(capabilities: list[str], output: Path, *, asked: bool) -> dict[str, Any]:
    """One recording of two seconds as the user, with these capabilities only."""
    code = [sys.executable, "-c", RECORD, "asked" if asked else "unasked"]
    load = ["--", "sh", "-c", "sleep 2; grep CapEff /proc/self/status"]
    done = subprocess.run(
        [*as_user(capabilities), *code, "record", "-o", str(output), *load],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    lines = done.stderr.strip().splitlines() or [""]
    result: dict[str, Any] = {"capabilities": capabilities, "status": done.returncode, "said": lines[-1][:400]}
    if (output / "manifest.json").exists():
        manifest = json.loads((output / "manifest.json").read_text())
        result["kept"] = manifest["recorder"]["capabilities_kept"]
        result["kprobes"] = any(name.startswith("kprobe") for name in manifest["probes"]["attached"])
        result["complete"] = manifest["complete"]
        result["owners"] = sorted({path.stat().st_uid for path in output.iterdir()})
        result["command"] = done.stdout.strip()
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def check(capabilities: list[str]) -> dict[str, str]:
    """What `check` misses as the user with these capabilities."""
    done = subprocess.run(
        [*as_user(capabilities), sys.executable, "-m", "collect", "check", "--json"], capture_output=True, text=True
    )
    findings = json.loads(done.stdout)["findings"]
    return {row["what"]: row["found"] for row in findings if not row["ok"]}


def main() -> None:
    home = Path("/var/tmp/privileges")
    home.mkdir()
    os.chown(home, USER, USER)
    os.chdir(Path(__file__).parents[3])
    # The limit of locked memory as a user has it: the lab lifts it.
    import resource

    resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
    # As the user sees the machine: root reads /proc/kcore without DAC_READ_SEARCH.
    asked = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", sys.executable, "-c",
         "from collect.privileges import needed; print(*(c.name.lower() for c in needed(changes=True)))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    names = asked.stdout.split()
    results = {"all": trial(names, home / "all", asked=True)}
    # Debian's own restriction (values above 2) asks for CAP_SYS_ADMIN, whatever CAP_PERFMON allows.
    before = PARANOID.read_text()
    PARANOID.write_text("2")
    results["perf_event_paranoid 2"] = trial(names, home / "paranoid-2", asked=True)
    PARANOID.write_text(before)
    results["refused"] = trial(names[1:], home / "refused", asked=True)
    for left_out in sys.argv[1:] or names:
        results[f"without {left_out}"] = trial(
            [name for name in names if name != left_out], home / left_out, asked=False
        )
    missing = check(names)
    print(json.dumps({"missing": missing, "kernel": os.uname().release, "needed": names, "trials": results}, indent=1))


if __name__ == "__main__":
    main()
