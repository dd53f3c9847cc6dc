"""The checkout and the results as disks, for kernels without 9p (Debian's cloud flavour)."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from tests.vm import disks
from tests.vm.errors import LabError

# What a guest has no use for, and what may be large.
_LEFT_OUT = (".git", ".venv", "venv", "__pycache__", ".*_cache", "sample_traces", "build", "dist", "lab", "demo")
_RESULTS_BYTES = 8 * 2**30


def pack_checkout(checkout: Path, home: Path) -> Path:
    """A read-only disk with a copy of the checkout, as it is now."""
    tree = home / "repo"
    shutil.copytree(checkout, tree, symlinks=True, ignore=shutil.ignore_patterns(*_LEFT_OUT))
    image = home / "repo.img"
    disks.make(image, tree, free_mb=1, label="repo")
    shutil.rmtree(tree)
    return image


def empty_results(home: Path) -> Path:
    """A blank disk; the guest writes a tar archive to it. Sparse: it costs what is written."""
    image = home / "results.img"
    with image.open("wb") as file:
        file.truncate(_RESULTS_BYTES)
    return image


def unpack_results(image: Path, out: Path) -> None:
    """Bring the results from the guest's archive to the host's directory."""
    try:
        with tarfile.open(image, mode="r:") as archive:
            archive.extractall(out, filter="data")
    except tarfile.ReadError as error:
        raise LabError(f"The guest left no readable results on its disk: {error}.") from error
