"""Every set of programs compiles with our own headers, as for old kernels and new, where bcc is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from collect.compiler import import_bcc
from collect.errors import HostError
from collect.probes import probe_features
from collect.source import source
from tests.unit.test_collect_program import KERNELS, FakeBtf, symbols

ROOT = Path(__file__).parents[2]
CONSTANTS = {
    "TOP_PGT": 1 << 32,
    "PAGE_OFFSET_BASE": 1 << 47,
    "VMEMMAP_BASE": 1 << 46,
    "PHYS_MASK": 1 << 45,
    "LEVELS": 4,
}
SETS: dict[str, list[dict[str, Any]]] = {
    "5.10": [{"pages": "none"}, {"pages": "all"}, {"pages": "all", "changes": False}],
    "7.2": [
        {"pages": "scoped"},
        {"pages": "all", "page_ring": (2, 4)},
        {"pages": "all", "changes": False, "page_ring": (2, 4)},
    ],
}
"""What is recorded, with page rings where the kernel has an atomic fetch for them."""
PAST_THE_TRACEPOINT = {
    "5.10": {"split_page": 2, "alloc_contig_range": 4},
    "7.2": {"split_page": 2, "alloc_contig_frozen_range_noprof": 4, "alloc_pages_bulk_noprof": 5},
}
COMPILE = """
import sys
from pathlib import Path
from collect.compiler import compile_program, import_bcc
bcc = import_bcc()
bcc.BPF._trace_autoload = lambda self: None  # compiled, not attached
for name in sys.argv[2:]:
    print(compile_program(bcc, Path(name).read_text(), sys.argv[1].split()).headers)
"""


@pytest.mark.parametrize("kernel", SETS)
def test_each_set_of_programs_compiles_with_our_headers_alone(kernel: str, tmp_path: Path) -> None:
    try:
        import_bcc()
    except HostError as error:
        pytest.skip(f"{error}")
    if os.geteuid() != 0:
        pytest.skip("bcc makes the maps when it compiles: run make test as root")
    functions = KERNELS[kernel] | PAST_THE_TRACEPOINT[kernel]
    features = probe_features(symbols(tmp_path, functions), FakeBtf(functions), all_pages=True)  # type: ignore[arg-type]
    texts = [tmp_path / f"{i}.c" for i in range(len(SETS[kernel]))]
    for text, options in zip(texts, SETS[kernel], strict=True):
        text.write_text(source(features, **options))
    flags = " ".join(
        f"-D{name}={value:#x}ULL" if value >> 31 else f"-D{name}={value}" for name, value in CONSTANTS.items()
    )
    # The variable names a tree that is not there: what does not compile with ours, does not at all.
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, flags, *map(str, texts)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"BCC_KERNEL_SOURCE": str(tmp_path / "none")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["our own"] * len(texts)
