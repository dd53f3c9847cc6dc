"""A recording at default settings, less its fentry programs: for a kernel that refuses those, as many clouds' do.

Run as a program by the benchmark: `python3 -m tests.bench.default_recording -o DIR -- COMMAND`. What runs for every
page of the machine is what `directmap-collect record` attaches, text and maps, and the rest of the recorder is the same
too. What is left out runs only when the direct map changes or a region is made or freed.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

from collect import program, recorder
from collect.btf import Btf
from collect.errors import HostError
from collect.kallsyms import Kallsyms
from collect.probes import Features, probe_features
from collect.source import source

__all__ = ["page_programs"]

STUBS = ("KFUNC_PROBE(", "KRETFUNC_PROBE(")
MODULE_TRACEPOINT = re.compile(r"RAW_TRACEPOINT_PROBE\((\w+)\)")
"""Not attached either, for a kernel without modules has none; bcc attaches what has this name, and nothing else."""


def page_programs(features: Features, **options: Any) -> str:
    """The C text of a whole recording's programs, less what is attached by fentry and fexit, and at modules."""
    text = source(probe_features(Kallsyms(), Btf()), **options | {"changes": True})
    text = "\n".join(line for line in text.splitlines() if not line.startswith(STUBS))
    return MODULE_TRACEPOINT.sub(r"int unattached_\1(struct bpf_raw_tracepoint_args *ctx)", text)


def main() -> int:
    from collect.options import Options

    parser = argparse.ArgumentParser(description="Record as by default, without fentry programs.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    program.source = page_programs  # type: ignore[attr-defined]
    try:
        recorder.Recorder(Options(args.output, pages="scoped", only_pages=True), args.command).run(None)
    except HostError as error:
        print(f"default_recording: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
