"""Writes results into a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from analyze.plots_style import save
from collect.errors import HostError
from replay.plots import split_figure
from replay.results import PolicyResult
from replay.tables import text_table

__all__ = ["FILES", "write"]

FILES = ("results.json", "results.txt", "split.svg", "split.png")


def write(directory: Path, results: Sequence[PolicyResult]) -> None:
    """Write `FILES` into `directory`, made if need be; files of those names are replaced. Raises HostError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps([result.to_json() for result in results], allow_nan=False, indent=1)
        (directory / FILES[0]).write_text(text + "\n", encoding="utf-8")
        (directory / FILES[1]).write_text(text_table(results), encoding="utf-8")
        figure = split_figure(results)
        for name in FILES[2:]:
            save(figure, directory / name)
    except OSError as error:
        raise HostError(
            f"{directory}: cannot be written ({error.strerror}); choose another directory with -o"
        ) from None
