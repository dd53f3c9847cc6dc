"""A Debian userland as debootstrap leaves it, with a user who may call sudo, and nothing of ours.

The pristine tree of a suite is kept in the lab's cache, and so are the packages that apt and pip download: what is tested
is the installing, not the mirror. Every command runs in a mount namespace of its own, so that nothing stays mounted.
Addresses of mirrors and of package indexes come from this machine's own settings, at run time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.vm import cache, packages, shell

__all__ = ["CleanDebian", "pristine"]

USER, UID = "newcomer", 1000
HOME = f"/home/{USER}"
INDEX_SETTINGS = ("index-url", "extra-index-url", "find-links", "trusted-host", "proxy", "timeout", "retries")
PROXIES = ("http_proxy", "https_proxy", "no_proxy")
CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"

_ENTER = """
set -e
mount -t proc proc "$0/proc"
mount --rbind /sys "$0/sys"
mount --rbind /dev "$0/dev"
mount -t tmpfs tmpfs "$0/dev/shm"
mount --bind "$1" "$0/var/cache/apt/archives"
mount --bind "$2" "$0/var/cache/pip"
exec chroot "$0" su --login "$3" --command "$4"
"""


def pristine(suite: str) -> Path:
    """The untouched tree of a suite, built by debootstrap on first use. Needs root."""
    home = cache.root() / "pristine" / suite
    with cache.lock(f"pristine-{suite}"):
        if home.is_dir():
            return home
        cache.say(f"building a clean {suite} (a few minutes, once)")
        with cache.building(home) as work:
            command = ["debootstrap", "--variant=minbase", "--arch=amd64", "--include=ca-certificates,sudo"]
            if packages.KEYRING.exists():
                command.append(f"--keyring={packages.KEYRING}")
            # `sid` is the script that fits every suite debootstrap has not heard of yet.
            command += [suite, str(work), packages.mirrors().main, "/usr/share/debootstrap/scripts/sid"]
            shell.run(command, what=f"debootstrap {suite}")
    return home


class CleanDebian:
    """A copy of a pristine tree at `tree`, with a user `newcomer` in it, to install things into."""

    def __init__(self, suite: str, tree: Path) -> None:
        self.suite, self.tree = suite, tree
        shell.run(["cp", "-a", "--reflink=auto", pristine(suite), tree], what=f"copying the clean {suite}")
        self._downloads = [cache.root() / "downloads" / suite / kind for kind in ("apt", "pip")]
        for folder in self._downloads:
            (folder / "partial").mkdir(parents=True, exist_ok=True)
        os.chown(self._downloads[1], UID, UID)
        (tree / "var/cache/pip").mkdir()
        self._settings()
        done = self.run(
            f"useradd --create-home --shell /bin/bash --uid {UID} {USER} && apt-get -q update -o Acquire::Check-Valid-Until=false",
            user="root",
        )
        assert done.returncode == 0, done.stderr

    def _settings(self) -> None:
        for name in ("resolv.conf", "hosts"):
            if Path(f"/etc/{name}").exists():
                shutil.copyfile(f"/etc/{name}", self.tree / "etc" / name)
        (self.tree / "etc/sudoers.d/newcomer").write_text(f"{USER} ALL=(ALL) NOPASSWD: ALL\n")
        # Services do not start in a chroot, and sandboxed downloads cannot enter the cache.
        (self.tree / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")
        (self.tree / "usr/sbin/policy-rc.d").chmod(0o755)
        keep = 'APT::Sandbox::User "";\nAPT::Keep-Downloaded-Packages "true";\nAcquire::Retries "3";\n'
        (self.tree / "etc/apt/apt.conf.d/90test").write_text(keep)
        if (bundle := os.environ.get("SSL_CERT_FILE")) and Path(bundle).is_file():
            shutil.copyfile(bundle, self.tree / CA_BUNDLE)
        (self.tree / "etc/pip.conf").write_text(pip_conf(pip_settings()))
        proxies = {name: os.environ[name] for name in PROXIES if name in os.environ}
        lines = [f"{name}={value}" for name, value in {"PIP_CACHE_DIR": "/var/cache/pip", **proxies}.items()]
        (self.tree / "etc/environment").write_text("\n".join(lines) + "\n")

    def run(
        self, command: str, *, user: str = USER, typed: str = "", seconds: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in the user's home as it would run when typed after logging in; `typed` answers what it asks."""
        inner = ["sh", "-c", _ENTER, self.tree, *self._downloads, user, command]
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", *map(str, inner)],
            input=typed,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={
                "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM": "dumb",
                "LC_ALL": "C.UTF-8",
            },
            check=False,
        )

    def give(self, source: Path, name: str) -> Path:
        """Copy the files that git knows, as they stand in the work tree, to ~/NAME; the directory as seen from here."""
        target = self.tree / HOME.lstrip("/") / name
        listed = shell.run(
            ["git", "-C", source, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], what="git ls-files"
        )
        for file in filter(None, listed.split("\0")):
            if (source / file).is_file() and not (source / file).is_symlink():
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / file, target / file)
        shell.run(["chown", "-R", f"{UID}:{UID}", target], what="giving the checkout away")
        return target


def pip_settings() -> Mapping[str, str]:
    """Where this machine's pip looks for packages, of the settings that mean something elsewhere too."""
    listed = shell.run([sys.executable, "-m", "pip", "config", "list"], what="reading pip's settings")
    found: dict[str, str] = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        name = name.rpartition(".")[2]
        words = [word for word in shlex.split(value.strip("'\"")) if not word.startswith(("file:", "/"))]
        if name in INDEX_SETTINGS and words:
            found[name] = " ".join(words)
    return found


def pip_conf(settings: Mapping[str, str]) -> str:
    """The same as a file, with the certificates that this machine trusts: pip brings its own."""
    return (
        "\n".join(["[global]", f"cert = /{CA_BUNDLE}", *(f"{name} = {value}" for name, value in settings.items())])
        + "\n"
    )
