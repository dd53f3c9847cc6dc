"""`directmap-analyze info`: what was recorded, where, and what was lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analyze.arguments import add_json, add_trace
from analyze.doubts import warnings
from analyze.losses import Doubt
from analyze.words.terminal import clean
from collect.command_line import Subparsers, add_command
from collect.schema import TABLES
from collect.trace import Trace, open_trace

__all__ = ["add_to", "run"]


EXAMPLES = (
    ("directmap-analyze info my-trace", "from the manifest alone; takes no time"),
    ("directmap-analyze info my-trace --json", "the same for programs"),
)


def add_to(commands: Subparsers) -> None:
    parser = add_command(commands, "info", "what was recorded, where, and what was lost", EXAMPLES)
    add_trace(parser)
    add_json(parser)
    parser.set_defaults(run=lambda options: run(options.directory, as_json=options.json))


def run(directory: Path, *, as_json: bool) -> int:
    """Print it; returns the exit status. Raises TraceError."""
    trace = open_trace(directory)
    print(json.dumps(_json(trace), indent=1, allow_nan=False) if as_json else "\n".join(_lines(trace)))
    return 0


def _json(trace: Trace) -> dict[str, Any]:
    manifest = trace.manifest
    keys = (
        "format_version",
        "tool_version",
        "complete",
        "created",
        "command",
        "kernel",
        "cpu",
        "memory",
        "probes",
        "losses",
    )
    return {
        **{key: manifest[key] for key in keys},
        "duration_ns": manifest["ts_end_ns"] - manifest["ts_start_ns"],
        "rows": {name: trace.n_rows(name) for name in TABLES},
    }


def _lines(trace: Trace) -> list[str]:
    manifest = trace.manifest
    kernel, cpu, memory = manifest["kernel"], manifest["cpu"], manifest["memory"]
    seconds = (manifest["ts_end_ns"] - manifest["ts_start_ns"]) / 1e9
    ram = sum(end - first for first, end in memory["ranges"]) * 4096
    emulated = ", emulated: its times say nothing" if cpu.get("emulated") else ""
    listed = manifest["probes"].get("missing")
    missing = [probe for probe in listed if isinstance(probe, dict)] if isinstance(listed, list) else []
    lost = {name: n for name, n in manifest["losses"].items() if n}
    lines = [
        *warnings(trace, ~Doubt(0)),
        f"kernel     {clean(kernel.get('release', '?'))}",
        f"machine    {clean(cpu.get('model', '?'), 40)}{emulated}",
        f"memory     {ram / 2**30:.1f} GiB in {len(memory['ranges'])} ranges, {memory['paging_levels']} paging levels",
        f"recorded   {clean(manifest['created'])}, {seconds:.1f} s, by directmap {clean(manifest['tool_version'], 20)}",
        f"command    {clean(' '.join(str(word) for word in manifest['command']), 65)}",
    ]
    if not manifest["complete"]:
        ended = manifest.get("ended")
        why = clean(str(ended), 60) if ended else "the recorder was killed; this was recovered from its journal"
        lines.append(f"incomplete {why}")
    lines.append("")
    for name in TABLES:
        size = sum(segment["bytes"] for segment in manifest["tables"][name])
        lines.append(f"{name:<10} {trace.n_rows(name):>12,} rows {size:>12,} bytes")
    lines += ["", f"lost       {sum(lost.values()):,} events"]
    lines += [f"           {n:>12,} {clean(name)}" for name, n in lost.items()]
    for probe in missing:
        lines.append(f"no probe   {clean(probe.get('name', '?'), 30)}: {clean(probe.get('why', ''), 36)}")
    return lines
