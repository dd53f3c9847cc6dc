"""`directmap-collect`: record, recover, snapshot, check."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from collect.command_line import OneLineParser, add_command, program, run_program
from collect.completion import add_completion
from collect.errors import HostError
from collect.manual import add_manual

__all__ = ["main"]

MIN_SNAPSHOT_SECONDS = 0.1

SNAPSHOT_SECONDS = 120.0
"""How long a request waits for its snapshot: more than one takes that never comes to rest."""

EXAMPLES = (
    ("directmap-collect check", "what would work here"),
    ("directmap-collect record -o my-trace -d 60", "one minute of this machine"),
    ("directmap-collect record -o my-trace -- make -j8", "as long as a command runs"),
    ("directmap-collect snapshot", "the direct map as it is now"),
    ("directmap-collect recover my-trace", "finish a killed recording"),
)
RECORD = (
    ("directmap-collect record -o my-trace", "until Ctrl-C"),
    ("directmap-collect record -o my-trace -d 60 --live", "one minute, shown while it runs"),
    (
        "directmap-collect record -o my-trace -- make -j8",
        "as long as a command runs, with the privileges of whoever calls",
    ),
    (
        "directmap-collect record -o my-trace -d 600 --snapshot-every 10",
        "with page tables read every 10 s, so that verify holds the state in between against them",
    ),
    (
        "directmap-collect record -o my-trace -d 600 --pages all --max-overhead 1",
        "every page event too, and fewer of them where that takes more than 1 % of all CPUs' time",
    ),
    ("directmap-collect record -o my-trace -d 60 --only-pages", "where changes cannot be seen"),
)
RECOVER = (("directmap-collect recover my-trace", "finish it from its journal; at most two seconds are missing"),)
SNAPSHOT = (
    ("directmap-collect snapshot", "totals by level and zone, beside what /proc/meminfo says"),
    ("directmap-collect snapshot --json", "the same for programs"),
    (
        "directmap-collect snapshot --into my-trace",
        "have the recorder that writes my-trace read the page tables now, into its trace (as kill -USR1 does)",
    ),
)
CHECK = (
    ("directmap-collect check", "what a recording needs, whether it is there, and what mends it"),
    ("directmap-collect check -o /var/tmp/my-trace", "with the room on that disk"),
    ("directmap-collect check --json", "the same for programs"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    return run_program("directmap-collect", lambda: int(options.run(options, arguments)), tell=False)


def _parser() -> OneLineParser:
    parser, commands = program("directmap-collect", "Record who changes the kernel's direct map.", EXAMPLES)

    record = add_command(
        commands,
        "record",
        "record this kernel, as root or with the capabilities that check lists",
        RECORD,
        more="It lasts until Ctrl-C, for a time, or as long as a command runs; a second Ctrl-C aborts it. A terminal that "
        "closes ends it as Ctrl-C does, except under nohup. On a terminal one line "
        "tells how far it is. An interrupted or killed recording is finished by recover.",
        exits={0: "recorded, whatever the command left with (the manifest keeps that)"},
    )
    record.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory of the trace")
    record.add_argument("-d", "--duration", type=float, metavar="SECONDS", help="stop after this time")
    record.add_argument(
        "--pages",
        choices=("scoped", "all", "none"),
        help="page events in scope of the regions (default), every one (the default of --only-pages), or none",
    )
    record.add_argument(
        "--only-pages",
        action="store_true",
        help="page events alone, where changes cannot be seen (no fentry, no /proc/kcore)",
    )
    record.add_argument(
        "--sample", type=int, default=1, metavar="N", help="with --pages all: one block of pages in N (default: 1, all)"
    )
    record.add_argument(
        "--max-overhead",
        type=float,
        metavar="PERCENT",
        help="of all CPUs' time, for page events: past it they are sampled, then off; changes never",
    )
    record.add_argument(
        "--snapshot-every",
        type=float,
        metavar="SECONDS",
        help="read the page tables so often too, to prove the state in between (also at any SIGUSR1)",
    )
    record.add_argument(
        "--live", action="store_true", help="show levels, splits by process and losses on the terminal while recording"
    )
    record.add_argument("--ring-bytes", type=int, help=argparse.SUPPRESS)
    record.add_argument("--force", action="store_true", help="replace a trace that is there")
    record.add_argument("command", nargs="*", metavar="-- COMMAND", help="record while this runs")
    record.set_defaults(run=_record)

    recover = add_command(
        commands,
        "recover",
        "finish a trace whose recorder was killed",
        RECOVER,
        more="What was saved until then becomes a trace like any other; what it lacks, its manifest says.",
    )
    recover.add_argument("directory", type=Path, metavar="DIR", help="a trace that was not finished")
    recover.set_defaults(run=_recover)

    snapshot = add_command(
        commands,
        "snapshot",
        "totals per level from the page tables, beside /proc/meminfo",
        SNAPSHOT,
        more="Nothing is attached and nothing is written. Run it as root: it reads /proc/kcore.",
    )
    snapshot.add_argument(
        "--into", type=Path, metavar="DIR", help="have the recorder that writes to DIR take one, into its trace"
    )
    snapshot.add_argument("--json", action="store_true", help="for programs")
    snapshot.set_defaults(run=_snapshot)

    check = add_command(
        commands,
        "check",
        "what would work here, and what is missing",
        CHECK,
        more="Each kind of program that a recording attaches is tried with an empty one. For what is missing the command stands "
        "there that mends it. Nothing is written.",
        exits={0: "a recording would work", 2: "it would not, or only `record --only-pages`"},
    )
    check.add_argument("-o", "--output", type=Path, default=Path(), metavar="DIR", help="where a trace would go")
    check.add_argument("--json", action="store_true", help="for programs")
    check.set_defaults(run=_check)
    add_completion(commands, parser)
    add_manual(commands, parser)
    return parser


def _record(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    environment = dict(os.environ)
    # Library threads of no use to us, which would keep the privileges that this thread gives up.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    from collect.live import tell
    from collect.options import Options
    from collect.recorder import Recorder

    if options.duration is not None and not 0 < options.duration < 1e9:
        raise HostError(f"--duration {options.duration:g}: give seconds greater than 0")
    if options.max_overhead is not None and not 0 < options.max_overhead <= 100:
        raise HostError(f"--max-overhead {options.max_overhead:g}: give per cent of all CPUs' time, above 0, up to 100")
    if options.snapshot_every is not None and not MIN_SNAPSHOT_SECONDS <= options.snapshot_every < 1e9:
        raise HostError(
            f"--snapshot-every {options.snapshot_every:g}: give seconds from {MIN_SNAPSHOT_SECONDS:g} on; "
            "a single one comes by SIGUSR1"
        )
    if options.snapshot_every is not None and options.only_pages:
        raise HostError("--snapshot-every: --only-pages reads no page tables; record without one of the two")
    if options.sample not in (1 << shift for shift in range(17)):
        raise HostError(f"--sample {options.sample}: give a power of two, 1 to 65536")
    pages = options.pages or ("all" if options.only_pages else "scoped")
    if options.only_pages and pages != "all":
        raise HostError(f"--only-pages --pages {pages}: nothing is left to record; use --pages all")
    if options.sample != 1 and pages != "all":
        raise HostError(f"--sample {options.sample}: goes with --pages all")
    recorder = Recorder(
        Options(
            options.output,
            force=options.force,
            pages=pages,
            only_pages=options.only_pages,
            sample=options.sample,
            max_overhead=options.max_overhead,
            snapshot_every=options.snapshot_every,
            live=options.live,
            ring_bytes=options.ring_bytes,
            command_line=["directmap-collect", *arguments],
        ),
        options.command or None,
        environment,
    )
    summary = recorder.run(options.duration)
    told = [f"{summary.get('pages', 0)} page events", f"{summary['lost']} lost"]
    if not options.only_pages:
        told[:0] = [f"{summary.get('changes', 0)} changes", f"{summary.get('regions', 0)} region events"]
        told.append(f"{summary['own_frames']} frames split by attaching")
        if summary["snapshots_between"]:
            told.append(f"{summary['snapshots_between']} snapshots between start and end")
        if summary["snapshot_frames_unstable"]:
            told.append(f"{summary['snapshot_frames_unstable']} frames in them changed too often to be read")
    tell(f"recorded {summary['seconds']} s: {', '.join(told)} -> {options.output}")
    return 0


def _recover(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from collect.recovery import recover

    manifest = recover(options.directory)
    rows = sum(segment["rows"] for segments in manifest["tables"].values() for segment in segments)
    print(f"recovered {rows} rows -> {options.directory}", file=sys.stderr)
    return 0


def _snapshot(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    if options.into is not None:
        from collect.moments import ask_for_snapshot

        pid = ask_for_snapshot(options.into, seconds=SNAPSHOT_SECONDS)
        print(f"process {pid} has taken a snapshot -> {options.into}", file=sys.stderr)
        return 0
    from collect.counters import read_counters
    from collect.host import physical_mask, zone_ranges
    from collect.kallsyms import Kallsyms
    from collect.kcore import Kcore
    from collect.pagetables import Walker
    from collect.snapshot import walk_once, zone_counts_kb

    kcore = Kcore()
    snapshot = walk_once(Walker(kcore, physical_mask(kcore, Kallsyms())))
    claimed = read_counters()
    rows = [(name, kb, claimed.get(f"meminfo/{name}")) for name, kb in snapshot.counts_kb().items()]
    zones = zone_counts_kb(snapshot.leaves, zone_ranges())
    if options.json:
        levels = {
            name: {"page_tables_kb": kb, "meminfo_kb": claim, "difference_kb": None if claim is None else claim - kb}
            for name, kb, claim in rows
        }
        print(json.dumps({"levels": levels, "zones": zones}, indent=1))
        return 0
    print(f"{'':18}{'page tables':>14}{'/proc/meminfo':>16}{'it says':>20}")
    for name, kb, claim in rows:
        told = "-" if claim is None else "the same" if claim == kb else f"{abs(claim - kb)} kB {_more(claim - kb)}"
        print(f"{name:18}{kb:>11} kB{claim if claim is not None else '-':>13} kB{told:>20}")
    if any(claim not in (None, kb) for _, kb, claim in rows):
        print("Where they differ the page tables are right: meminfo's counters drift at boot.")
    print(f"\n{'zone':18}{'1G':>14}{'2M':>14}{'4K':>14}")
    for zone, counts in zones.items():
        levels_kb = (counts["DirectMap1G"], counts["DirectMap2M"], counts["DirectMap4k"])
        print(f"{zone:18}" + "".join(f"{n:>11} kB" for n in levels_kb))
    return 0


def _more(difference: int) -> str:
    return "more" if difference > 0 else "less"


def _check(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from collect.check import findings, would_work

    rows = findings(options.output)
    works = would_work(rows)
    if options.json:
        print(json.dumps({"findings": [row._asdict() for row in rows], "would_work": works}, indent=1))
    else:
        for row in rows:
            print(f"{'ok' if row.ok else 'MISSING' if row.needed else 'absent':8}{row.what}: {row.found}")
            if row.mend and not row.ok:
                print(f"{'':8}-> {row.mend}")
        for command, would in works.items():
            print(f"{'works' if would else 'no':8}directmap-collect {command}")
    return 0 if works["record"] else 2


if __name__ == "__main__":
    sys.exit(main())
