"""The benchmark's command: `python3 -m tests.bench`, from the top of the checkout, as root (`make bench-collect`)."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from collect.errors import HostError
from tests.bench import machine, result, tracefs
from tests.bench.contestants import OURS_ALL, OURS_DEFAULT, UNTRACED, Contestant, contestants
from tests.bench.loads import BUILD, LOADS, POPULATE, Load, Settings, compiled, load
from tests.bench.markdown import markdown, publish
from tests.bench.rounds import Run, rounds, run_once

MEMORY = "memory"
WARM_UP_SECONDS = 1.0
ON_A_BUILD = (UNTRACED, OURS_DEFAULT, OURS_ALL, "perf")


def _parser(known: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of populate-and-drop; default: %(default)s")
    parser.add_argument("--build-rounds", type=int, help="default: twice --rounds")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of a run of populate-and-drop; default: %(default)s"
    )
    parser.add_argument("--megabytes", type=int, default=64, help="that it maps at once; default: %(default)s")
    parser.add_argument("--files", type=int, default=0, help="that the build compiles; default: 20 s worth of them")
    parser.add_argument("--memory-seconds", type=float, default=75.0, help="default: %(default)s")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help=f"some of {', '.join([*LOADS, MEMORY])}; {', '.join(known)}"
    )
    parser.add_argument(
        "--recorder", default=shlex.join([sys.executable, "-m", "collect"]), help="default: %(default)s"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.md", help="Markdown here, JSON beside it")
    return parser


def main() -> int:
    """Run the benchmark; returns the exit status."""
    everyone = {contestant.name: contestant for contestant in contestants([])}
    parser = _parser(list(everyone))
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminate)
    only = {name for name in args.only.replace(",", " ").split() if name}
    unknown = only - {*LOADS, MEMORY, *everyone}
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: neither a load nor a contestant")
    try:
        found = _measure(args, only)
    except HostError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is left running", file=sys.stderr)
        return 130
    publish(found, markdown(found), args.output)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(args: argparse.Namespace, only: set[str]) -> dict[str, Any]:
    everyone = contestants(shlex.split(args.recorder))
    loads = [name for name in (*LOADS, MEMORY) if name in only] or [*LOADS, MEMORY]
    chosen = [one for one in everyone if one.name in only] or everyone
    if chosen[0].name != UNTRACED:
        chosen = [everyone[0], *chosen]
    machine.require(["gcc", "make", *(one.program for one in chosen if one.program and one.name != "trace-cmd")])
    settings = Settings(seconds=args.seconds, megabytes=args.megabytes, files=args.files)
    no_tracefs = tracefs.mount_apart()
    with tempfile.TemporaryDirectory(prefix="directmap-bench-") as name:
        scratch = Path(name)
        compiled(scratch)
        able, refused = _warm_up(chosen, settings, scratch, no_tracefs)
        runs: list[Run] = []
        left_out: list[Run] = []
        processes = {}
        for each in (load(name, settings, scratch) for name in loads if name != MEMORY):
            processes[each.name] = each.processes
            kept_runs, noisy = _rounds(each, able, args, scratch)
            runs, left_out = runs + kept_runs, left_out + noisy
        kept = None
        ours = [one for one in able if one.name == OURS_ALL]
        if MEMORY in loads and ours:
            long = load(POPULATE, replace(settings, seconds=args.memory_seconds), scratch)
            kept = result.memory(*run_once(long, ours[0], scratch, sample_seconds=1.0))
    figures = result.figures(runs, processes)
    return {
        "machine": machine.describe(),
        "command": f"make bench-collect{_variables(args)}",
        "settings": asdict(settings) | {"files": settings.n_files, "rounds": args.rounds},
        "titles": {one.name: one.title for one in [*everyone, *able]},
        "refused": refused,
        "goals": result.goals(figures, kept),
        "figures": figures,
        "memory": kept,
        "runs": [asdict(run) for run in runs],
        "left_out": [asdict(run) for run in left_out],
    }


def _warm_up(
    chosen: list[Contestant], settings: Settings, scratch: Path, no_tracefs: str | None
) -> tuple[list[Contestant], dict[str, str]]:
    """One short run each, not counted: it fills the caches, and shows who is refused here, and why."""
    short = load(POPULATE, replace(settings, seconds=WARM_UP_SECONDS), scratch)
    able: list[Contestant] = []
    refused: dict[str, str] = {}
    todo = list(chosen)
    while todo:
        one = todo.pop(0)
        why = _refusal(one, short, scratch, no_tracefs)
        if why is None:
            able.append(one)
            continue
        print(f"left out: {one.title}: {why}", file=sys.stderr, flush=True)
        refused[one.title] = why
        if one.lesser:
            todo.insert(0, one.lesser)
    return able, refused


def _refusal(one: Contestant, short: Load, scratch: Path, no_tracefs: str | None) -> str | None:
    if one.missing():
        return f"{one.program} is not installed"
    if one.needs_tracefs and no_tracefs:
        return no_tracefs
    try:
        run_once(short, one, scratch)
    except HostError as error:
        return str(error).removeprefix(f"{one.title}: ")
    return None


def _rounds(each: Load, able: list[Contestant], args: argparse.Namespace, scratch: Path) -> tuple[list[Run], list[Run]]:
    if each.name != BUILD:
        return rounds(each, able, args.rounds, scratch)
    on_build = [one for one in able if one.name in ON_A_BUILD or args.only]
    run_once(each, on_build[0], scratch)  # sources written, compiler and headers cached
    return rounds(each, on_build, args.build_rounds or 2 * args.rounds, scratch)


def _variables(args: argparse.Namespace) -> str:
    return f" ROUNDS={args.rounds} SECONDS={args.seconds:g}" + (f" ONLY='{args.only}'" if args.only else "")


if __name__ == "__main__":
    sys.exit(main())
