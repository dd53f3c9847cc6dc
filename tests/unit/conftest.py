"""Fixtures of several files here: a row maker, and the symbols that it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from collect.rows import RowMaker
from tests.machine.row_records import SYMBOLS, row_maker


@pytest.fixture
def symbols(tmp_path: Path) -> Path:
    path = tmp_path / "kallsyms"
    path.write_text(SYMBOLS)
    return path


@pytest.fixture
def maker(symbols: Path) -> RowMaker:
    return row_maker(symbols)
