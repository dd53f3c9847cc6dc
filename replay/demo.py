"""`python3 -m replay.demo`: report and replay of every trace in a directory, as one self-contained page."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from analyze.analysis import analyse
from analyze.page import Picture, TraceView, plain, render
from analyze.plots_style import inline_svg, save
from analyze.report import claim_output, write_analysis
from collect.errors import HostError, TraceError
from collect.manifest import MANIFEST
from replay.output import results_json
from replay.plots import split_figure
from replay.results import Interval, PolicyResult
from replay.run import run_policies
from replay.tables import text_table

__all__ = ["PAGE", "main", "write_demo"]

PAGE = "index.html"
TEMPLATES = Path(__file__).parent / "templates"
BASELINE = "none"
BOUND = "clairvoyant"
SHOWN = (BASELINE, "gfp-unmapped", "prog-pack", "rox-cache", "pageblock-flip", BOUND)
"""Policies on the page; `directmap-replay run` knows more."""


@dataclass(frozen=True)
class PolicyView:
    """A row of the comparison, in words; `lo` and `hi` are widths of its bar in per cent."""

    name: str
    title: str
    split_2m: str
    lo: float
    hi: float
    split_1g: str
    live: str
    entries: str
    flushes: str
    idle: str
    refills: str
    not_served: str
    caveats: Sequence[str]
    narrow: Sequence[str]


@dataclass(frozen=True)
class Shown:
    """One trace on the page."""

    view: TraceView
    folder: str
    n_2m: int
    n_1g: int
    by_policy: dict[str, str]
    comparison: str
    policies: Sequence[PolicyView]
    plot: Picture


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
    page = render("demo.html", templates=[TEMPLATES], shown=shown, policies=[n for n in SHOWN if n != BASELINE])
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def _show(trace_dir: Path, out: Path, slug: str) -> Shown:
    folder = re.sub(r"[^A-Za-z0-9._-]", "_", trace_dir.name)
    claim_output(out / folder, force=True)
    seen = write_analysis(analyse(trace_dir), out / folder, slug)
    seen = replace(seen, levels=_within(seen.levels, folder), map=_within(seen.map, folder))
    if seen.pages and seen.pages.free:
        seen = replace(seen, pages=replace(seen.pages, free=_within(seen.pages.free, folder)))
    results = run_policies(trace_dir, SHOWN)
    replayed = _write_replay(results, out / folder / "replay")
    return Shown(
        view=seen,
        folder=folder,
        n_2m=sum(user.n_2m for user in seen.users),
        n_1g=sum(user.n_1g for user in seen.users),
        by_policy={result.policy: str(result.split_2m) for result in results},
        comparison=comparison(results),
        policies=_rows(results),
        plot=Picture(
            Markup(inline_svg(split_figure(results), f"{slug}-replay", comparison(results))),
            "2M frames split over time under each policy, and what it holds idle; a band where the trace does not decide.",
            [f"{folder}/replay/{name}" for name in replayed],
        ),
    )


def _within(picture: Picture, folder: str) -> Picture:
    return replace(picture, files=[f"{folder}/{file}" for file in picture.files])


def _write_replay(results: list[PolicyResult], out: Path) -> list[str]:
    """The replay's files; returns their names."""
    claim_output(out, force=True)
    text = json.dumps(results_json(results), indent=1, allow_nan=False)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")
    (out / "results.txt").write_text(text_table(results) + "\n", encoding="utf-8")
    figure = split_figure(results)
    pictures = ["split.svg", "split.pdf", "split.png"]
    for name in pictures:
        save(figure, out / name)
    return [*pictures, "results.json", "results.txt"]


def _rows(results: list[PolicyResult]) -> list[PolicyView]:
    widest = max((result.split_2m.hi for result in results), default=0.0) or 1.0
    return [
        PolicyView(
            name=result.policy,
            title=result.title,
            split_2m=str(result.split_2m),
            lo=round(100 * result.split_2m.lo / widest, 2),
            hi=round(100 * result.split_2m.hi / widest, 2),
            split_1g=str(result.split_1g),
            live=str(result.split_2m_live_end),
            entries=str(result.leaf_entries_end),
            flushes=str(_sum(result.tlb_flushes_split, result.tlb_flushes_call, result.tlb_flushes_ranged)),
            idle=str(result.idle_pages_peak),
            refills=f"{_sum(*result.refills.values())} ({result.refill_failures})",
            not_served=f"{result.requests['not_served']:,}",
            caveats=result.caveats,
            narrow=result.narrow,
        )
        for result in results
    ]


def _sum(*intervals: Interval) -> Interval:
    return Interval(sum(i.lo for i in intervals), sum(i.hi for i in intervals))


def comparison(results: list[PolicyResult]) -> str:
    """One sentence: what each policy would have left of the frames that were split without any."""
    base = next(result.split_2m for result in results if result.policy == BASELINE)
    parts = []
    for result in results:
        if result.policy == BASELINE:
            continue
        if result.policy == BOUND:
            lo, hi = (Interval(n, n) for n in (result.split_2m.lo, result.split_2m.hi))
            need = f"no policy can do with fewer than {lo}" if lo.hi else "nothing proves that any frame must be split"
            parts.append(f"{need}, and a packing that knows the future does with {hi}")
        elif result.identity:
            parts.append(f"{result.policy} would have changed nothing here")
        else:
            cost = (
                f" (at the cost of up to {result.idle_pages_peak.hi:,.0f} idle pages)"
                if result.idle_pages_peak.hi
                else ""
            )
            parts.append(f"{result.policy} would have split {result.split_2m}{cost}")
    return f"Replayed as recorded, {base} distinct 2M frames were split; {'; '.join(parts)}."


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
