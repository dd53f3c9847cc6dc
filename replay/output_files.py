"""What `compare` and `sweep` found, on stdout and in the files that `-o` names: a table or a picture, as the suffix says."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collect.errors import HostError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PICTURES", "SUFFIXES", "check_outputs", "tell", "write_outputs"]

PICTURES = (".svg", ".png", ".pdf")
SUFFIXES = (*PICTURES, ".csv", ".json")


def check_outputs(paths: Sequence[Path], *, force: bool) -> None:
    """Before anything takes time: each path has a suffix that we write, and is not there yet. Raises HostError."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise HostError(f"{path}: what shall it hold? give a name that ends in {', '.join(SUFFIXES)}")
        if path.is_dir():
            raise HostError(f"{path}: is a directory; give a file with -o")
        if path.exists() and not force:
            raise HostError(f"{path}: exists; give another file with -o, or --force to write over it")


def write_outputs(
    paths: Sequence[Path],
    *,
    figure: Callable[[], Figure],
    table: Callable[[], Sequence[Mapping[str, object]]],
    json_value: Callable[[], Any],
) -> None:
    """Write each path as its suffix says; directories above it are made. Raises HostError."""
    drawn: Figure | None = None
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix.lower() == ".csv":
                path.write_text(_csv(table()), encoding="utf-8", newline="")
            elif path.suffix.lower() == ".json":
                path.write_text(json.dumps(json_value(), allow_nan=False, indent=1) + "\n", encoding="utf-8")
            else:
                from analyze.plots.style import save

                drawn = figure() if drawn is None else drawn
                save(drawn, path)
        except OSError as error:
            raise HostError(f"{path}: cannot be written ({error.strerror}); give another file with -o") from None


def tell(
    options: argparse.Namespace,
    *,
    figure: Callable[[], Figure],
    table: Callable[[], Sequence[Mapping[str, object]]],
    json_value: Callable[[], Any],
    lines: Callable[[], Sequence[str]],
) -> int:
    """Write what `options.output` names, print the lines (or JSON, for `options.json`); the exit status. Raises HostError."""
    write_outputs(options.output, figure=figure, table=table, json_value=json_value)
    if options.json:
        print(json.dumps(json_value(), allow_nan=False, indent=1))
    else:
        sys.stdout.write("\n".join(lines()) + "\n")
    return 0


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    """RFC 4180 with \\n; what a spreadsheet would take for a formula gets an apostrophe before it, as OWASP advises."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _cell(value) for key, value in row.items()})
    return text.getvalue()


def _cell(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
