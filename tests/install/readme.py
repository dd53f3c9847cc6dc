"""The commands that README.md tells a reader to type, in their order."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["commands"]

README = Path(__file__).parents[2] / "README.md"


def commands(heading: str, text: str | None = None) -> list[str]:
    """Command lines of the code blocks under a heading, without the remarks behind them. KeyError where there is none."""
    sections = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text or README.read_text(), re.DOTALL | re.MULTILINE))
    found = re.findall(r"^    (\S.*)$", sections[heading], re.MULTILINE)
    return [re.split(r"\s+# ", line)[0].rstrip() for line in found]
