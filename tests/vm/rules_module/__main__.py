"""`python3 -m tests.vm.rules_module VERSION ...`: the module of the load `rules`, built for these kernels."""

from __future__ import annotations

import sys

from tests.vm.errors import LabError
from tests.vm.rules_module import build

if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python3 -m tests.vm.rules_module VERSION ...   (6.1, 7.2, ...)")
try:
    for version in sys.argv[1:]:
        print(build(version))
except LabError as error:
    sys.exit(f"lab: {error}")
