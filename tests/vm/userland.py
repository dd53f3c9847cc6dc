"""The guest's root disk: a small Debian of one suite, with BCC, Python and Arrow in it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.vm import cache, disks, packages, shell
from tests.vm.errors import LabError

# Raise it whenever what goes into an image changes: older images are then built anew.
_RECIPE = 1

# What the collector and the loads need, and what it is compared with (bpftrace, perf).
_PACKAGES = (
    "python3",
    "python3-bpfcc",
    "kmod",
    "udev",
    "systemd",
    "systemd-sysv",
    "bpftrace",
    "linux-perf",
    "procps",
    "iproute2",
    "pciutils",
)
_WHEELS = ("numpy", "pyarrow")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
_FREE_MB = 2048  # for traces, page cache and whatever a job writes


@dataclass(frozen=True)
class Userland:
    """One root disk, ready to boot."""

    suite: str
    image: Path
    python: str
    bcc: str


def suite_for(kernel: str) -> str:
    """The suite whose BCC and Python are of the kernel's time, so that they know each other."""
    major, minor = (int(part) for part in kernel.split(".")[:2])
    if (major, minor) <= (6, 1):
        return "bookworm"
    return "trixie" if major < 7 else "sid"


def ready(suite: str) -> Userland:
    """The userland of a suite from the cache, built first when it is not there yet."""
    home = cache.root() / "userland" / suite
    with cache.lock(f"userland-{suite}"):
        if (found := _read(home)) is None:
            _build(suite, home)
            found = _read(home)
    if found is None:
        raise LabError(f"The userland just built in {home} cannot be read. Remove it and retry.")
    return found


def _read(home: Path) -> Userland | None:
    try:
        facts = json.loads((home / "userland.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if facts.pop("recipe") != _RECIPE:
        return None
    return Userland(image=home / facts.pop("image"), **facts)


def _build(suite: str, home: Path) -> None:
    if os.geteuid() != 0:
        raise LabError(
            f"The lab's {suite} userland has to be built once, and debootstrap needs root for it.\n"
            f"Run this once: sudo python3 -m tests.vm prepare --suite {suite}"
        )
    cache.say(f"building the {suite} userland (a few minutes, once)")
    mirror = packages.mirrors().main
    with cache.building(home) as work:
        tree = work / "tree"
        command = ["debootstrap", "--variant=minbase", "--arch=amd64"]
        if packages.KEYRING.exists():
            command.append(f"--keyring={packages.KEYRING}")
        command += [suite, str(tree), mirror]
        try:
            # `sid` is the script that fits every suite debootstrap has not heard of yet.
            shell.run([*command, "/usr/share/debootstrap/scripts/sid"], what=f"debootstrap {suite}")
            _install(tree)
        finally:
            if tree.exists():
                _write_nothing_mounted(tree)
        python = _chroot(tree, "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'").strip()
        bcc = _chroot(tree, "dpkg-query -W -f '${Version}' python3-bpfcc").strip()
        _wheels(tree, python)
        _settle(tree)
        disks.make(work / "root.img", tree, free_mb=_FREE_MB, label="userland")
        shutil.rmtree(tree)
        facts = asdict(Userland(suite, Path("root.img"), python, bcc)) | {"recipe": _RECIPE}
        facts["image"] = "root.img"
        (work / "userland.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _chroot(tree: Path, script: str) -> str:
    """Run a shell script inside the tree, with /proc mounted in a namespace that ends with it."""
    inner = 'mount -t proc proc "$0/proc" && exec chroot "$0" sh -ec "$1"'
    return shell.run(
        ["unshare", "--mount", "sh", "-c", inner, tree, script],
        what="a step of the userland",
        attempts=2,
        extra_env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    )


def _install(tree: Path) -> None:
    """Install the packages with the tree's own apt, which resolves better than debootstrap."""
    dpkg = tree / "etc/dpkg/dpkg.cfg.d/lab"
    # Documentation is never read in the guest, and nothing in the tree survives a crash anyway.
    dpkg.write_text(
        "force-unsafe-io\n" + "".join(f"path-exclude=/usr/share/{part}/*\n" for part in ("doc", "man", "locale")),
        encoding="ascii",
    )
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    policy.chmod(0o755)
    for name in ("resolv.conf", "hosts"):
        if Path(f"/etc/{name}").exists():
            shutil.copyfile(f"/etc/{name}", tree / "etc" / name)
    _chroot(
        tree,
        # A mirror may lag behind a moving suite; what it serves is signed all the same.
        "apt-get -q update -o Acquire::Retries=3 -o Acquire::Check-Valid-Until=false\n"
        "apt-get -qy --no-install-recommends -o Acquire::Retries=3 install "
        + " ".join(_PACKAGES)
        + "\napt-get clean\nrm -rf /var/lib/apt/lists/*",
    )


def _write_nothing_mounted(tree: Path) -> None:
    """Make sure that removing the tree later cannot reach through a forgotten mount."""
    mounts = Path("/proc/mounts").read_text(encoding="utf-8")
    for line in mounts.splitlines():
        point = line.split()[1].replace("\\040", " ")
        if point.startswith(f"{tree}/"):
            shell.run(["umount", "-l", point], what=f"unmounting {point}")


def _wheels(tree: Path, python: str) -> None:
    """Put numpy and pyarrow where the tree's python3 finds them; the host's pip fetches them."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}"]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    target = tree / f"usr/local/lib/python{python}/dist-packages"
    command += ["--target", str(target), *_WHEELS]
    shell.run(command, what=f"fetching wheels for Python {python}", attempts=3)
    # Compiled now, natively: under emulation it would cost every run many seconds.
    _chroot(tree, f"python3 -m compileall -q /usr/local/lib/python{python} || true")


def _settle(tree: Path) -> None:
    """The last touches: mount points, and a system that asks nothing at its first boot."""
    for folder in ("kernel", "repo", "out"):
        (tree / folder).mkdir(exist_ok=True)
    (tree / "etc/fstab").write_text("", encoding="ascii")
    (tree / "etc/hostname").write_text("lab\n", encoding="ascii")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost lab\n", encoding="ascii")
    (tree / "etc/machine-id").write_text("6" * 32 + "\n", encoding="ascii")
    for part in ("lib/modules", "src"):
        (tree / "usr" / part).mkdir(parents=True, exist_ok=True)
