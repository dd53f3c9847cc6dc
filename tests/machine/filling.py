"""Writes traces onto a disk that is full after a while: `python -m tests.machine.filling DIRECTORY RESERVE MANIFEST FREE...`.

DIRECTORY is the root of a small file system; a ballast file leaves FREE bytes, once for each of them. Prints as JSON, by
FREE, how many rows were safe when a write failed, what the recorder would have said; where the journal was left, it is
recovered, if need be after room was made.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from collect.errors import HostError
from collect.journal import TraceWriter
from collect.manifest import MANIFEST
from collect.recovery import finish_after, recover
from collect.trace import open_trace
from tests.machine.writing import rows

ROLL_BYTES = 1 << 18
N_ROWS = 300


def fill(root: Path, free: int, reserve: int, manifest: dict[str, Any]) -> dict[str, Any]:
    """One recording, from the first row to the answer."""
    disk = os.statvfs(root)
    ballast = root / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_frsize - free)
    writer = TraceWriter(root / "trace", manifest, roll_bytes=ROLL_BYTES, reserve_bytes=reserve)
    safe = n = 0
    try:
        while True:
            for name in ("counters", "pages"):
                writer.append(name, rows(name, n, N_ROWS))
            n += N_ROWS
            writer.sync()
            safe = n
    except OSError as error:
        said = [str(finish_after(error, writer, manifest, 23.0))]
    recovered = not (root / "trace" / MANIFEST).exists()
    if recovered:
        try:
            recover(root / "trace")
        except HostError as error:
            said.append(str(error))
            ballast.unlink()
            recover(root / "trace")
    trace = open_trace(root / "trace")
    return {
        "safe": safe,
        "said": said,
        "recovered": recovered,
        "complete": trace.manifest["complete"],
        "ended": trace.manifest.get("ended"),
        "counters": trace.table("counters")["value"].to_pylist(),
        "pages": trace.table("pages")["ts_ns"].to_pylist(),
        "left": sorted(path.name for path in (root / "trace").iterdir() if path.suffix not in (".json", ".parquet")),
    }


if __name__ == "__main__":
    root, results = Path(sys.argv[1]), {}
    for free in sys.argv[4:]:
        results[free] = fill(root, int(free), int(sys.argv[2]), json.loads(sys.argv[3]))
        shutil.rmtree(root / "trace")
        (root / "ballast").unlink(missing_ok=True)
    print(json.dumps(results))
