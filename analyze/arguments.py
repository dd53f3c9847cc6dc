"""Arguments that several commands of `directmap-analyze` share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

__all__ = ["Subparsers", "add_json", "add_trace"]

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Subparsers = Any


def add_trace(parser: argparse.ArgumentParser) -> None:
    """DIR, as `options.directory`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a trace")


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, as `options.json`."""
    parser.add_argument("--json", action="store_true", help="for programs")
