"""`python3 -m replay.demo`: report and replay of every trace in a directory, as one self-contained page."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analyze.analysis import analyse
from analyze.report.page import Picture, TraceView, plain
from analyze.report.writer import claim_output, write_page
from collect.errors import HostError, TraceError
from collect.manifest import MANIFEST
from replay.judgement import BOUND, SUBJECT, judge
from replay.measures import BASELINE
from replay.page_view import JudgedView, ReplayView, frames_split
from replay.policies.eager_merge import SUFFIX
from replay.report import TEMPLATES, Written, write_replay_report
from replay.run import run_policies

__all__ = ["PAGE", "main", "write_demo"]

PAGE = "index.html"
SHOWN = (BASELINE, SUBJECT, "grouped", "prog-pack", "rox-cache", "pageblock-flip", "none+merge", BOUND)
"""Policies on the page; `directmap-replay run` knows more."""
COLUMNS = (BASELINE, SUBJECT, BOUND, *(name for name in SHOWN if name not in (BASELINE, SUBJECT, BOUND)))
"""As the table at the top has them: on a narrow screen those come first that the others are compared with."""


@dataclass(frozen=True)
class Shown:
    """One trace on the page."""

    view: TraceView
    judged: JudgedView
    replay: ReplayView
    by_policy: dict[str, str]


def write_demo(traces: Path, out: Path, *, force: bool = False) -> Path:
    """Write a report and a replay of every trace under `traces` into `out`, and one page over all; returns its path.

    Raises TraceError if a trace cannot be read, or there is none; HostError if `out` cannot be written.
    """
    found = sorted(path.parent for path in traces.glob(f"*/{MANIFEST}")) if traces.is_dir() else []
    if not found:
        raise TraceError(
            f"{traces}: holds no trace; give a directory of directories that `directmap-collect record` wrote"
        )
    claim_output(out, force)
    shown = []
    for number, trace_dir in enumerate(found, 1):
        print(f"demo: {plain(trace_dir.name)} ({number} of {len(found)})", file=sys.stderr, flush=True)
        shown.append(_show(trace_dir, out, f"t{number}"))
    write_page(
        out / PAGE,
        "demo.html",
        templates=[TEMPLATES],
        shown=shown,
        policies=COLUMNS,
        merging=any(SUFFIX in name for name in COLUMNS),
    )
    return out / PAGE


def _show(trace_dir: Path, out: Path, slug: str) -> Shown:
    folder = re.sub(r"[^A-Za-z0-9._-]", "_", trace_dir.name)
    claim_output(out / folder, force=True)
    analysis = analyse(trace_dir)
    results = run_policies(trace_dir, SHOWN, rebuilt=analysis.rebuilt)
    judgement = judge(results)
    written = write_replay_report(analysis, results, judgement, out / folder, slug)
    assert written.judged is not None  # none is among the policies
    view, replayed = _within(written, folder)
    return Shown(view, written.judged, replayed, {r.policy: frames_split(r) for r in results})


def _within(written: Written, folder: str) -> tuple[TraceView, ReplayView]:
    """The same for a page one directory up."""

    def moved(files: Sequence[str]) -> list[str]:
        return [f"{folder}/{file}" for file in files]

    def picture(shown: Picture) -> Picture:
        return replace(shown, files=moved(shown.files))

    view, replayed = written.view, written.replay
    pages = view.pages
    if pages is not None and pages.free is not None:
        pages = replace(pages, free=picture(pages.free))
    view = replace(
        view,
        levels=picture(view.levels),
        map=replace(view.map, files=moved(view.map.files)),
        overview=moved(view.overview),
        pages=pages,
    )
    replayed = replace(
        replayed, saved=picture(replayed.saved), over_time=picture(replayed.over_time), files=moved(replayed.files)
    )
    return view, replayed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python3 -m replay.demo", description=__doc__)
    parser.add_argument("--traces", type=Path, required=True, metavar="DIR", help="a directory of traces")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="write over what an earlier demo wrote")
    args = parser.parse_args(argv)
    try:
        page = write_demo(args.traces, args.output, force=args.force)
    except (TraceError, HostError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(page.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
