"""A result as Markdown: what the terminal shows and what docs/overhead.md holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.loads import BUILD

__all__ = ["REACHED", "markdown", "publish", "table"]

REACHED = {True: "yes", False: "**no**", None: "not measured"}


def markdown(result: dict[str, Any]) -> str:
    """The whole result, as `tests.bench.__main__` puts it together."""
    machine, settings = result["machine"], result["settings"]
    parts = [
        "# What recording costs",
        f"Written by `{result['command']}` on {machine['date'][:10]}, commit {machine['commit']}; not edited by hand.",
        _machine(machine),
        "## Goals",
        table(
            ["goal", "measured", "reached"],
            [[goal["goal"], goal["measured"], REACHED[goal["reached"]]] for goal in result["goals"]],
        ),
    ]
    for load, figures in result["figures"].items():
        parts += [f"## {load}", _about(load, settings), _figures(load, figures, result["titles"])]
        parts.append(_quiet(load, figures, result["left_out"]))
        parts += _checks(figures, result["titles"])
    if result["memory"]:
        parts += ["## Memory of the recorder", _memory(result["memory"])]
    if result["refused"]:
        parts += ["## Not measured", "\n".join(f"* {name}: {why}" for name, why in result["refused"].items())]
    parts += ["## How to read it", NOTES.format(n_cpus=machine["n_cpus"])]
    return "\n\n".join(parts) + "\n"


NOTES = """\
* Every round runs each contestant once, in turn, and compares it with the untraced run of the same round; the one that
  begins changes from round to round. Cells give the median and, in brackets, smallest and largest. The interval under
  Goals is that of the sign test.
* Cost of an event: what a page takes longer than untraced, by two events a page (allocation and free), in time of the
  process that causes them; events that were lost count as if they had been recorded.
* Tracer's CPU: of its own processes, from the start of the load to their end, by a million events recorded. Attaching
  (for bpftrace and directmap: compiling) comes before and is not in it.
* Load and tracer share {n_cpus} CPUs. Where the load fills them all, the tracer's own work slows it too.
* "page programs only": this kernel refuses the whole recording (see Not measured). All that runs when a page is
  allocated or freed is attached, and the rest of the recorder runs as ever. What is missing runs when the direct map
  changes or a region is made or freed: rare events, which these loads hardly cause."""


def _machine(machine: dict[str, Any]) -> str:
    tools = ", ".join(version for version in machine["tools"].values() if version)
    warning = " **Emulated: its times mean nothing.**" if machine["emulated"] else ""
    return (
        f"{machine['cpu']}, {machine['n_cpus']} CPUs, {machine['memory_gib']} GiB, hypervisor {machine['hypervisor']}, "
        f"Linux {machine['kernel']}; {tools}.{warning}"
    )


def _about(load: str, settings: dict[str, Any]) -> str:
    if load == BUILD:
        return (
            f"`make -j{settings['n_cpus']}` compiles {settings['files']} generated C files with gcc -O2 -g "
            "(tests/bench/build.py): short processes, as in a kernel build."
        )
    n = settings["n_cpus"] if load.endswith("all-cpus") else 1
    return (
        f"{'1 process' if n == 1 else f'{n} processes'}, again and again for {settings['seconds']:g} s: map "
        f"{settings['megabytes']} MB in 4 KiB pages, all at once, and unmap them "
        "(tests/bench/populate_and_drop.c). The worst case."
    )


def _figures(load: str, figures: dict[str, Any], titles: dict[str, str]) -> str:
    first = "seconds" if load == BUILD else "pages/s"
    head = [
        "",
        first,
        "slower by",
        "in CPU time",
        "ns an event",
        "events/s",
        "lost",
        "bytes an event",
        "tracer's CPU s per M",
    ]
    rows = []
    for name, found in figures.items():
        speed = (
            _spread(found.get("seconds"), "{:.2f}")
            if load == BUILD
            else _spread(found.get("pages_per_second"), "{:,.0f}")
        )
        bare = name == "untraced"
        events = found["events"] + found["lost"]
        rows.append(
            [
                titles[name],
                speed,
                "" if bare else _spread(found["slowdown"], "{:.1%}"),
                "" if bare else _spread(found["cpu_slowdown"], "{:.1%}"),
                "" if bare else _spread(found.get("cost_ns"), "{:.0f}"),
                "" if bare else _spread(found.get("events_per_second"), "{:,.0f}"),
                "" if bare else f"{found['lost']:,}" + (f" ({found['lost'] / events:.1%})" if found["lost"] else ""),
                f"{found['bytes_per_event']:.1f}" if "bytes_per_event" in found else "",
                _spread(found.get("tracer_cpu_seconds_per_million"), "{:.2f}"),
            ]
        )
    return table(head, rows)


def _quiet(load: str, figures: dict[str, Any], left_out: list[dict[str, Any]]) -> str:
    """How far other processes were in the way."""
    rounds = figures["untraced"]["seconds"]["rounds"]
    n_out = len({run["round"] for run in left_out if run["load"] == load})
    most = max(found["others_share"] for found in figures.values())
    return (
        f"{rounds} rounds; {n_out} more were left out, since others used the CPUs more. "
        f"In the rounds shown others used at most {most:.0%} of them."
    )


def _checks(figures: dict[str, Any], titles: dict[str, str]) -> list[str]:
    """What the load did, held against what a trace says of it."""
    said = []
    for name, found in figures.items():
        if "load_pages" in found:
            said.append(
                f"The load's processes touched {found['load_pages']:,} pages under {titles[name]}. The traces hold "
                f"{found['load_pages_allocated']:,} pages that they allocated (page tables among them) and "
                f"{found['load_pages_freed']:,} that they freed."
            )
        if found["losses"]:
            said.append(
                f"Lost by {titles[name]}: " + ", ".join(f"{name} {n:,}" for name, n in found["losses"].items()) + "."
            )
    return said


def _memory(memory: dict[str, Any]) -> str:
    mb = {name: f"{memory[name] / 1e6:.0f} MB" for name in MEMORY_ROWS if name in memory}
    rows = [[text, mb[name]] for name, text in MEMORY_ROWS.items() if name in mb]
    return (
        f"`--pages all` for {memory['seconds']:.0f} s at {memory['events_per_second'] / 1e6:.2f} M events/s, "
        f"{memory['lost']:,} lost, {memory['bytes_per_event']:.2f} bytes an event; "
        f"{memory['samples']} samples, one a second:\n\n"
        + table(["resident memory of the recorder", ""], rows)
        + f"\n\nSlope of the last two thirds: {memory['slope_per_minute'] / 1e6:+.1f} MB a minute."
    )


MEMORY_ROWS = {
    "attach_peak": "peak until attached (the compiler)",
    "rings": "rings, as mapped (BPF ring buffers twice)",
    "first": "first sample after attaching, rings apart",
    "last": "last sample, rings apart",
    "largest": "largest sample, rings apart",
    "largest_anon": "of it anonymous, at most",
    "largest_file": "of it files (libraries), at most",
    "peak_between_samples": "peak by the kernel's own mark, rings apart",
}


def _spread(found: dict[str, Any] | None, form: str) -> str:
    if not found:
        return ""
    low, middle, high = (form.format(found[name]) for name in ("smallest", "median", "largest"))
    return middle if low == high else f"{middle} ({low} – {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def publish(result: dict[str, Any], text: str, output: Path | None) -> None:
    """Print a result's Markdown; with `output` write it there, and the result as JSON beside it."""
    print(text)
    if output:
        output.write_text(text)
        output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
