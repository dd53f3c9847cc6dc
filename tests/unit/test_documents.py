"""What README.md and docs/ tell a reader to type or to follow is there."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {name: import_module(f"{name}.__main__") for name in ("collect", "analyze", "replay")}
SHELL = ("|", ">", "&&", ";")


def command_lines(text: str) -> list[str]:
    """Lines of code blocks that call one of our programs, whichever way, without the remarks behind them."""
    lines = [re.split(r"\s+# ", line)[0] for line in re.findall(r"^(?: {4}|\t)(\S.*)$", text, re.MULTILINE)]
    return [line for line in lines if re.search(r"(?:directmap-|python3? -m )(?:collect|analyze|replay)\b", line)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / link).exists(), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_are_such_as_the_programs_take(document: Path) -> None:
    for line in command_lines(document.read_text()):
        words = shlex.split(line)
        at = next(
            i for i, word in enumerate(words) if re.search(r"directmap-(collect|analyze|replay)$", word) or word == "-m"
        )
        program = words[at].rpartition("-")[2] if words[at] != "-m" else words[at + 1]
        arguments = words[at + (1 if words[at] != "-m" else 2) :]
        ends = [i for i, word in enumerate(arguments) if word in SHELL]
        arguments = arguments[: ends[0]] if ends else arguments
        if not arguments or "..." in arguments:
            continue
        options = PROGRAMS[program]._parser().parse_args(arguments)
        assert callable(options.run), line


def test_a_command_line_is_found_in_a_code_block_alone() -> None:
    text = "Run `directmap-analyze nothing`.\n\n    sudo .venv/bin/directmap-collect check   # look\n    make demo\n"
    assert command_lines(text) == ["sudo .venv/bin/directmap-collect check"]
