"""A Debian kernel out of its packages: vmlinuz, an initramfs, and a disk of modules and headers."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.vm import cache, disks, initramfs, packages, shell
from tests.vm.errors import LabError

# Raise it whenever what is made of a kernel's packages changes.
_RECIPE = 1
FLAVOURS = ("amd64", "cloud-amd64")


@dataclass(frozen=True)
class Kernel:
    """One kernel, ready to boot."""

    home: Path
    wanted: str  # what was asked for, "6.1"
    flavour: str
    release: str  # uname -r
    suite: str
    versions: dict[str, str]  # package name -> version
    headers: bool
    shares: bool  # can it mount 9p? Debian's cloud flavour cannot

    @property
    def vmlinuz(self) -> Path:
        """The bootable kernel image."""
        return self.home / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """The first root, without the job, which every run appends."""
        return self.home / "initramfs.cpio"

    @property
    def disk(self) -> Path:
        """The ext4 image with modules/, src/ and kbuild/."""
        return self.home / "kernel.img"


def ready(wanted: str, flavour: str, *, refresh: bool = False) -> Kernel:
    """A kernel from the cache, fetched first when it is not there yet."""
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", wanted):
        raise LabError(f"--kernel {wanted}: expected a version such as 6.1 or 7.2.12.")
    home = cache.root() / "kernels" / f"{wanted}-{flavour}"
    with cache.lock(home.name):
        found = None if refresh else _read(home)
        if found is None:
            _build(wanted, flavour, home, refresh=refresh)
            found = _read(home)
    if found is None:
        raise LabError(f"The kernel just built in {home} cannot be read. Remove it and retry.")
    return found


def _read(home: Path) -> Kernel | None:
    try:
        facts = json.loads((home / "kernel.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if facts.pop("recipe") != _RECIPE:
        return None
    return Kernel(home=home, **facts)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def releases(apt: packages.Apt, flavour: str, wanted: str = r"\d+\.\d+") -> list[str]:
    """The releases of a flavour that the suites hold, the oldest first; `wanted` is a pattern."""
    # Backports into an older suite (6.1.0-0.deb11.50) and the empty packages that only
    # depend on the newest one (linux-image-6.1-amd64) do not match.
    release = rf"{wanted}(?:\.\d+)*(?:\+[^-]+|-\d+)-{flavour}"
    names = apt.names(f"linux-image-{release}")
    return sorted((name.removeprefix("linux-image-") for name in names), key=_numbers)


def newest(apt: packages.Apt, wanted: str, flavour: str) -> str:
    """The newest release of a kernel, one with headers if there is any."""
    images = releases(apt, flavour, re.escape(wanted))
    if not images:
        raise LabError(
            f"No suite of the mirror holds a {flavour} kernel {wanted}.\n"
            "List those it holds with: python3 -m tests.vm kernels"
        )
    with_headers = [release for release in images if apt.names(f"linux-headers-{re.escape(release)}")]
    return (with_headers or images)[-1]


def _build(wanted: str, flavour: str, home: Path, *, refresh: bool) -> None:
    with cache.lock("apt"), cache.building(home) as work:
        apt = packages.Apt()
        apt.update(force=refresh)
        release = newest(apt, wanted, flavour)
        tree = work / "tree"
        tree.mkdir()
        versions: dict[str, str] = {}
        _unpack_with_parts(apt, f"linux-image-{release}", tree, versions)
        headers = f"linux-headers-{release}"
        if with_headers := bool(apt.names(re.escape(headers))):
            _unpack_with_parts(apt, headers, tree, versions)
        else:
            cache.say(f"{headers} is not served any more: the guest goes without headers")
        image = f"linux-image-{release}"
        suite = apt.suite_of(image)
        cache.say(f"making the disk and the initramfs of {release}")
        _merge_usr(tree)
        modules = tree / "usr/lib/modules"
        shell.run(["depmod", "-b", tree, release], what=f"depmod for {release}")
        for candidate in (tree / f"boot/vmlinuz-{release}", modules / release / "vmlinuz"):
            if candidate.exists():
                shutil.move(candidate, work / "vmlinuz")
                break
        else:
            raise LabError(f"The packages of {release} hold no vmlinuz where one is expected.")
        archive, shares = initramfs.base(tree, release)
        (work / "initramfs.cpio").write_bytes(archive)
        disk = work / "disk"
        disk.mkdir()
        modules.rename(disk / "modules")
        (disk / "src").mkdir()
        (disk / "kbuild").mkdir()
        for part in (tree / "usr/src").glob("*"):
            part.rename(disk / "src" / part.name)
        for part in (tree / "usr/lib").glob("linux-kbuild-*"):
            part.rename(disk / "kbuild" / part.name)
        shutil.rmtree(tree)
        disks.make(work / "kernel.img", disk, free_mb=16, label="kernel")
        shutil.rmtree(disk)
        kernel = Kernel(home, wanted, flavour, release, suite, versions, headers=with_headers, shares=shares)
        facts = asdict(kernel) | {"recipe": _RECIPE}
        del facts["home"]
        (work / "kernel.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _unpack_with_parts(apt: packages.Apt, package: str, tree: Path, versions: dict[str, str]) -> None:
    """Unpack a package and those parts of the same kernel that it depends on."""
    versions[package] = apt.unpack(package, tree)
    depends = apt.fields(package).get("Depends", "")
    parts = re.findall(r"\blinux-(?:base|binary|modules|headers|kbuild)-\d[^\s,(|:]+", depends)
    for part in parts:
        if part.startswith("linux-base-") and not apt.names(re.escape(part)):
            continue  # /boot/config and System.map: the archive drops them before the rest, and nothing here reads them
        if part not in versions:
            _unpack_with_parts(apt, part, tree, versions)


def _merge_usr(tree: Path) -> None:
    """Bring lib/ of older packages under usr/lib/, and leave a link where depmod looks."""
    usr_lib = tree / "usr/lib"
    usr_lib.mkdir(parents=True, exist_ok=True)
    lib = tree / "lib"
    if lib.is_dir() and not lib.is_symlink():
        shutil.copytree(lib, usr_lib, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(lib)
    if not lib.is_symlink():
        lib.symlink_to("usr/lib")
