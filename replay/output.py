"""Writes results into a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyze.plots_style import save
from collect.errors import HostError
from replay.costs import Costs
from replay.plots import split_figure
from replay.pricing import costs_json, priced
from replay.results import PolicyResult
from replay.tables import text_table

__all__ = ["FILES", "results_json", "write"]

FILES = ("results.json", "results.txt", "split.svg", "split.png")


def results_json(results: Sequence[PolicyResult], costs: Costs | None = None) -> dict[str, Any]:
    """Results for programs, as docs/json.md says; priced against `none`, which is then among them."""
    return {
        **costs_json(costs),
        "results": [
            {**result.to_json(), "priced": None if costs is None else priced(result, results, costs).to_json()}
            for result in results
        ],
    }


def write(directory: Path, results: Sequence[PolicyResult], costs: Costs | None = None) -> None:
    """Write `FILES` into `directory`, made if need be; files of those names are replaced. Raises HostError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results_json(results, costs), allow_nan=False, indent=1)
        (directory / FILES[0]).write_text(text + "\n", encoding="utf-8")
        (directory / FILES[1]).write_text(text_table(results, costs), encoding="utf-8")
        figure = split_figure(results)
        for name in FILES[2:]:
            save(figure, directory / name)
    except OSError as error:
        raise HostError(
            f"{directory}: cannot be written ({error.strerror}); choose another directory with -o"
        ) from None
