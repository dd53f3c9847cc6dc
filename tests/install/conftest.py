"""What all installations begin with: a wheel and an sdist of the work tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.vm import shell

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel and an sdist, by what their names end with."""
    target = tmp_path_factory.mktemp("dist")
    shell.run(["make", "-C", ROOT, "man"], what="making the manual pages")
    shell.run([sys.executable, "-m", "build", "--outdir", target, ROOT], what="building a wheel and an sdist")
    return {".whl": next(target.glob("*.whl")), ".tar.gz": next(target.glob("*.tar.gz"))}
