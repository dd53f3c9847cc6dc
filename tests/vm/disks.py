"""Makes an ext4 image out of a directory, without mounting anything."""

from __future__ import annotations

import os
from pathlib import Path

from tests.vm import shell

# What e2fsprogs switches on today and the oldest kernel of the lab (5.10) refuses or does not need.
_FEATURES = "^has_journal,^orphan_file,^metadata_csum_seed,^metadata_csum"


def make(image: Path, tree: Path, *, free_mb: int, label: str) -> None:
    """Write the ext4 image `image` holding the directory `tree` and `free_mb` of free space."""
    inodes = 0
    size = 0
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            found = Path(folder, name).lstat()
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                inodes += 1
                size += -(-found.st_size // 4096) * 4096
    inodes = int(inodes * 1.1) + 20_000
    # 256 bytes an inode, and a tenth for directories, extents and bitmaps.
    megabytes = int(size * 1.1 + inodes * 256) // 2**20 + 32 + free_mb
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(inodes)]
    command += ["-O", _FEATURES, "-L", label, "-d", str(tree), str(image), f"{megabytes}M"]
    shell.run(command, what=f"making the disk image {image}")
