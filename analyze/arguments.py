"""Arguments that several commands of `directmap-analyze` share."""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_json", "add_top", "add_trace"]

MAX_TOP = 100_000


def add_trace(parser: argparse.ArgumentParser) -> None:
    """DIR, as `options.directory`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="the trace: the directory of a recording")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, as `options.json`."""
    parser.add_argument("--json", action="store_true", help="for programs")


def add_top(parser: argparse.ArgumentParser, default: int, what: str) -> None:
    """--top N, as `options.top`: how many lines of `what` are printed."""
    parser.add_argument("--top", type=_top, default=default, metavar="N", help=f"{what} (default: {default})")


def _top(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_TOP:
        raise argparse.ArgumentTypeError(f"give a number of lines from 1 to {MAX_TOP}")
    return int(text)
