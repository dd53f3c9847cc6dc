"""QEMU's monitor, from inside the guest: plug memory in, inject a machine check, ask what there is.

Needs a guest with ``--monitor``; by hand, in such a guest: ``python3 tests/vm/loads/monitor.py query-memory-devices``
or ``... device_add '{"driver": "pc-dimm", "id": "d", "memdev": "m"}'``.
The protocol is QMP, a JSON object a line (QEMU's docs/interop/qmp-spec).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Any

_PORTS = Path("/sys/class/virtio-ports")
_PORT = "lab.monitor"


class MonitorError(Exception):
    """The monitor refused a command, did not answer, or is not there."""


class Monitor:
    """An open monitor; `events` holds what it reported by itself, in order."""

    def __init__(self, *, patience: float = 30) -> None:
        found = [port for port in _PORTS.glob("*") if (port / "name").read_text("ascii").strip() == _PORT]
        if not found:
            raise MonitorError("this guest has no monitor; boot it with --monitor")
        self._fd = os.open(Path("/dev", found[0].name), os.O_RDWR | os.O_NONBLOCK)
        self._patience = patience
        self._seen = b""
        self.events: list[dict[str, Any]] = []
        # Once in a machine's life; whoever opens the port after us is told that it is done already.
        with contextlib.suppress(MonitorError):
            self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns."""
        text = json.dumps({"execute": command, "arguments": arguments}) + "\n"
        os.write(self._fd, text.encode())
        while True:
            answer = self._line(command)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise MonitorError(f"{command}: {answer['error'].get('desc', answer['error'])}")
            if "event" in answer:
                self.events.append(answer)

    def human(self, command: str) -> str:
        """Run a command of the human monitor, for what QMP has no command of its own (mce)."""
        return str(self.execute("human-monitor-command", **{"command-line": command}))

    def _line(self, command: str) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience
        while b"\n" not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise MonitorError(f"{command}: no answer within {self._patience:g} s")
            chunk = os.read(self._fd, 65536)
            if not chunk:
                raise MonitorError(f"{command}: the monitor was closed")
            self._seen += chunk
        line, _, self._seen = self._seen.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python3 tests/vm/loads/monitor.py COMMAND [JSON-ARGUMENTS]")
    given = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    print(json.dumps(Monitor().execute(sys.argv[1], **given), indent=1))
