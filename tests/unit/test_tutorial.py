"""docs/tutorial.md is true: its blocks are run in their order, and print what stands under them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text()
CHAPTERS = dict(re.findall(r"^## (\w+): .*?\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
BLOCK = re.compile(r"```python\n(.*?)```\n+```text\n(.*?)```", re.DOTALL)


def test_every_block_of_code_has_its_output_beside_it() -> None:
    assert set(CHAPTERS) == {"pandas", "DuckDB"}
    assert len(BLOCK.findall(TEXT)) == TEXT.count("```python\n") >= 10


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_prints_what_it_says(chapter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    with pd.option_context("display.width", 200, "display.max_columns", 30):
        for code, expected in BLOCK.findall(CHAPTERS[chapter]):
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(code, names)
            assert lines(printed.getvalue()) == lines(expected), code


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip("\n").splitlines()]
