"""Nothing: sleeps, for smoke tests and for what a system does by itself."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads.report import Report, parser


def main() -> int:
    """Run the load: five seconds at --scale 1."""
    options = parser(__doc__ or "", seconds=60).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report = Report("quiet", options)
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(min(5 * options.scale, options.seconds))
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
