"""Page events worked out in a process of their own while this one rebuilds the map: compiling and Python need a core each.

`python3 -m analyze.pages.beside DIR` is that process. It writes what it found, pickled, to its parent.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from analyze.pages.events import PageEvents, page_events
from collect.errors import TraceError
from collect.trace import Trace, open_trace

__all__ = ["pages_beside"]

WORTH_A_PROCESS = 1 << 21
"""Rows from which on starting another interpreter (most of a second) pays."""


@contextmanager
def pages_beside(trace: Trace, worth: int = WORTH_A_PROCESS) -> Iterator[Callable[[], PageEvents | None]]:
    """Begin with the page events of a trace; what is yielded waits for the result. None where it holds no page event.

    Args:
        worth: rows from which on another process does it.
    Raises:
        TraceError: when the result is asked for, where the rows are not what the format allows.
    """
    rows = trace.n_rows("pages")
    if rows < worth or (os.cpu_count() or 1) < 2:
        yield lambda: page_events(trace) if rows else None
        return
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        # -P: not from the directory that we were started in, which may be a stranger's trace.
        [sys.executable, "-P", "-m", __name__, str(trace.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
    )

    def result() -> PageEvents | None:
        said, _ = process.communicate()
        # What it could not do, for whatever reason, is done again here, where errors are told.
        return page_events(trace) if process.returncode else pickle.loads(said)

    try:
        yield result
    finally:
        if process.stdout and not process.stdout.closed:  # nobody asked for the result, or waits for it any longer
            process.kill()
            process.communicate()


def main() -> int:
    try:
        found = page_events(open_trace(sys.argv[1]))
    except (TraceError, MemoryError):
        return 2
    sys.stdout.buffer.write(pickle.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
