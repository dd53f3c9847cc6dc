"""The guest's first root: a static busybox, the few modules that reach the disks, and the job."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

from tests.vm import cpio, shell
from tests.vm.errors import LabError

_GUEST = Path(__file__).parent / "guest"
# crc32c_generic: ext4 of 5.10 and 6.1 asks the crypto layer for it by a name modprobe cannot see.
# qemu's q35 offers its disks and shares on virtio over PCI; virtio_console carries the output.
_NEEDED = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
_IF_THERE = ("crc32c_generic",)
_FOR_SHARES = ("9pnet_virtio", "9p")


def _depends(tree: Path, release: str, module: str) -> list[Path] | None:
    """The files to insert for a module, in order; None when the kernel does not have it."""
    command = ["modprobe", "-d", str(tree), "-S", release, "--show-depends", module]
    try:
        shown = shell.run(command, what=f"looking for the module {module}")
    except LabError:
        if shell.find("modprobe") is None:
            raise
        return None
    return [Path(line.split()[1]) for line in shown.splitlines() if line.startswith("insmod ")]


def _plain(module: Path) -> bytes:
    """A module's contents; busybox's insmod takes them uncompressed only."""
    data = module.read_bytes()
    if module.suffix == ".xz":
        return lzma.decompress(data)
    if module.suffix == ".gz":
        return gzip.decompress(data)
    if module.suffix == ".zst":
        raise LabError(f"{module.name}: modules compressed with zstd are not known to the lab yet.")
    return data


def base(tree: Path, release: str) -> tuple[bytes, bool]:
    """The part of the initramfs that depends on the kernel alone, and whether 9p is in it."""
    busybox = shell.find("busybox")
    if busybox is None:
        raise LabError("busybox is not installed. Run: sudo python3 -m tests.vm setup")
    archive = cpio.Archive()
    for folder in ("proc", "sys", "dev", "newroot", "lab", "bin"):
        archive.folder(folder)
    archive.file("bin/busybox", Path(busybox).read_bytes(), 0o755)
    order: list[Path] = []
    shares = True
    for module in (*_IF_THERE, *_NEEDED, *_FOR_SHARES):
        files = _depends(tree, release, module)
        if files is None and module in _NEEDED:
            raise LabError(f"The kernel {release} lacks {module}, which its disks need.")
        if files is None and module in _FOR_SHARES:
            shares = False
        order += [path for path in files or [] if path not in order]
    names = []
    for path in order:
        name = path.name.partition(".ko")[0] + ".ko"
        names.append(name)
        archive.file(f"modules/{name}", _plain(path))
    archive.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    return archive.bytes(), shares


def job(files: dict[str, bytes]) -> bytes:
    """The part that every run appends: the guest-side scripts, and the run's own files in lab/."""
    archive = cpio.Archive()
    archive.file("init", (_GUEST / "initramfs.sh").read_bytes(), 0o755)
    for script in ("init.sh", "job.sh"):
        archive.file(f"lab/{script}", (_GUEST / script).read_bytes(), 0o755)
    for name, data in files.items():
        archive.file(f"lab/{name}", data, 0o755)
    return archive.bytes()
