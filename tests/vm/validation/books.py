"""What was predicted and what was measured: JSON lines in docs/validation/, one a prediction and one a recording."""

from __future__ import annotations

import datetime
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.vm.validation.cells import ROOT

__all__ = ["MEASURED", "PREDICTED", "PUBLISHED", "RFC_PREDICTED", "add", "committed", "head", "now", "read"]

_HOME = ROOT / "docs" / "validation"
PREDICTED = _HOME / "predicted.jsonl"
MEASURED = _HOME / "measured.jsonl"
RFC_PREDICTED = _HOME / "rfc-predicted.jsonl"
PUBLISHED = _HOME / "published.jsonl"

Line = dict[str, Any]


def read(book: Path) -> dict[str, Line]:
    """The lines of a book by their "name"; of several of one name the last."""
    if not book.exists():
        return {}
    return {line["name"]: line for line in map(json.loads, book.read_text(encoding="utf-8").splitlines())}


def add(book: Path, line: Line) -> None:
    """Add a line; nothing that was written is ever changed."""
    book.parent.mkdir(parents=True, exist_ok=True)
    with book.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


def committed(book: Path, line: Line) -> tuple[str, str] | None:
    """The commit that put the line into the book, and its date (ISO 8601, UTC); None where it is in none."""
    text = json.dumps(line, sort_keys=True)
    argv = [
        "git",
        "-C",
        str(ROOT),
        "log",
        "--reverse",
        "--format=%h %ct",
        "-S",
        text,
        "--",
        str(book.relative_to(ROOT)),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        return None
    commit, when = done.stdout.splitlines()[0].split()
    return commit, datetime.datetime.fromtimestamp(int(when), datetime.UTC).isoformat(timespec="seconds")


def head() -> str:
    """The commit at hand, short."""
    argv = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
