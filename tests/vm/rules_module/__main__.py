"""`python3 -m tests.vm.rules_module VERSION ...`: the module of the load `rules`, built for these kernels."""

from __future__ import annotations

import sys

from tests.vm.errors import LabError, leave
from tests.vm.rules_module import build


def main() -> int:
    """Build them, and print where each lies. Raises LabError."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        raise LabError("usage: python3 -m tests.vm.rules_module VERSION ...   (6.1, 7.2, ...)")
    for version in sys.argv[1:]:
        print(build(version))
    return 0


if __name__ == "__main__":
    leave(main)
