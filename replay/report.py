"""Report and replay of a trace in one page, with the pictures and numbers of both beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analyze.analysis import Analysis
from analyze.plots.style import save
from analyze.report.page import TraceView
from analyze.report.writer import PAGE, write_analysis, write_page, writing
from replay.costs import Costs
from replay.judgement import Judgement
from replay.page_view import JudgedView, ReplayView, judged_view, replay_view
from replay.plots import split_figure
from replay.plots_saved import saved_figure
from replay.results import PolicyResult
from replay.results_json import results_json
from replay.tables import text_table

__all__ = ["Written", "write_replay_report"]

TEMPLATES = Path(__file__).parent / "templates"
_PICTURES = {"saved": saved_figure, "split": split_figure}
_SUFFIXES = (".svg", ".pdf", ".png")


@dataclass(frozen=True)
class Written:
    """What was written of a trace, as a page shows it."""

    page: Path
    view: TraceView
    judged: JudgedView | None
    replay: ReplayView


def write_replay_report(
    analysis: Analysis,
    results: Sequence[PolicyResult],
    found: Judgement | None,
    out: Path,
    slug: str = "trace",
    *,
    costs: Costs | None = None,
) -> Written:
    """Write page, pictures and numbers of a trace into the directory `out`. Raises HostError.

    Args:
        results: of replays of this trace.
        found: what `judge` said of them.
        costs: by which they are priced; `none` is then among them.
        slug: ASCII word that tells this trace from others on the same page.
    """
    view = write_analysis(analysis, out, slug)
    files = {name: [f"{name}{suffix}" for suffix in _SUFFIXES] for name in _PICTURES}
    with writing(out):
        text = json.dumps(results_json(results, costs, found), indent=1, allow_nan=False)
        (out / "results.json").write_text(text + "\n", encoding="utf-8")
        (out / "results.txt").write_text(text_table(results, costs, found), encoding="utf-8")
        for name, draw in _PICTURES.items():
            figure = draw(results)
            for file in files[name]:
                save(figure, out / file)
    files["numbers"] = ["results.json", "results.txt"]
    shown = judged_view(found) if found is not None else None
    replay = replay_view(results, found, costs, slug=slug, files=files)
    write_page(out / PAGE, "run.html", templates=[TEMPLATES], view=view, judged=shown, replay=replay)
    return Written(out / PAGE, view, shown, replay)
