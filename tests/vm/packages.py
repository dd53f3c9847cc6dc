"""Debian packages of any suite, through an apt state of the lab's own.

The machine's own sources and installed packages are not touched. Mirror addresses are never
written in the repository: they come from the machine's own apt sources at run time, or from
DIRECTMAP_LAB_MIRROR and DIRECTMAP_LAB_SECURITY_MIRROR.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm import cache, shell
from tests.vm.errors import LabError

SUITES = ("bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports", "sid")
SECURITY_SUITES = ("bullseye-security", "bookworm-security", "trixie-security")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_LISTS_MAX_AGE_S = 7 * 86400


@dataclass(frozen=True)
class Mirrors:
    """The two archives that hold Debian's suites."""

    main: str
    security: str | None


def mirrors() -> Mirrors:
    """Find the mirrors: the environment first, then the machine's own apt sources."""
    main = os.environ.get("DIRECTMAP_LAB_MIRROR")
    security = os.environ.get("DIRECTMAP_LAB_SECURITY_MIRROR")
    listed = shell.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        what="reading the machine's apt sources",
    )
    for uri in listed.splitlines():
        uri = uri.strip().rstrip("/")
        if main is None and re.search(r"/debian$", uri):
            main = uri
        if security is None and re.search(r"/(debian-)?security$", uri):
            security = uri
    if main is None:
        raise LabError(
            "The machine's apt sources name no Debian archive (an address ending in /debian), "
            "so the lab does not know where to get kernels.\n"
            "Set DIRECTMAP_LAB_MIRROR to the address of a Debian mirror (and, if you like, "
            "DIRECTMAP_LAB_SECURITY_MIRROR to one of its security archive)."
        )
    return Mirrors(main.rstrip("/"), security)


class Apt:
    """An apt state under the lab's cache that knows all the suites at once."""

    def __init__(self) -> None:
        self.home = cache.root() / "apt"
        for part in ("lists/partial", "cache/archives/partial", "debs"):
            (self.home / part).mkdir(parents=True, exist_ok=True)
        (self.home / "status").touch()

    def _options(self) -> list[str]:
        options = {
            "Dir::Etc::sourcelist": self.home / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State::Lists": self.home / "lists",
            "Dir::State::status": self.home / "status",
            "Dir::Cache": self.home / "cache",
            # Container images switch these off, and every question then takes eight seconds.
            "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "",  # the sandbox user cannot enter a cache under /root
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            # A mirror may lag behind a moving suite; what it serves is signed all the same.
            "Acquire::Check-Valid-Until": "false",
        }
        return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]

    def update(self, *, force: bool = False) -> None:
        """Fetch the suites' package lists unless those at hand are young enough."""
        stamp = self.home / "updated"
        if not force and stamp.exists() and time.time() - stamp.stat().st_mtime < _LISTS_MAX_AGE_S:
            return
        cache.say("fetching Debian's package lists")
        found = mirrors()
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        lines = [f"deb {signed}{found.main} {suite} main" for suite in SUITES]
        if found.security:
            lines += [f"deb {signed}{found.security} {suite} main" for suite in SECURITY_SUITES]
        (self.home / "sources.list").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shell.run(
            ["apt-get", *self._options(), "update"],
            what="fetching Debian's package lists",
            attempts=3,
        )
        stamp.touch()

    def names(self, pattern: str) -> list[str]:
        """Names of the packages that match a regular expression as a whole."""
        listed = shell.run(["apt-cache", *self._options(), "pkgnames"], what="listing packages")
        matcher = re.compile(pattern)
        return sorted(name for name in listed.split() if matcher.fullmatch(name))

    def fields(self, package: str) -> dict[str, str]:
        """The control fields of a package's newest version; empty when no suite holds it."""
        shown = shell.run(
            ["apt-cache", *self._options(), "show", "--no-all-versions", package],
            what=f"looking up the package {package}",
        )
        fields: dict[str, str] = {}
        for line in shown.splitlines():
            if line[:1].strip() and ":" in line:
                key, _, value = line.partition(":")
                fields.setdefault(key, value.strip())
        return fields

    def suite_of(self, package: str) -> str:
        """The suite that holds a package's newest version."""
        policy = shell.run(
            ["apt-cache", *self._options(), "madison", package],
            what=f"looking up the suite of {package}",
        )
        first = policy.splitlines()[0] if policy.strip() else ""
        match = re.search(r"\s([a-z][a-z-]*)/main", first)
        return match.group(1) if match else "unknown"

    def unpack(self, package: str, tree: Path) -> str:
        """Download a package, unpack it below `tree`, and return its version."""
        fields = self.fields(package)
        if not fields:
            raise LabError(
                f"No suite of the mirror holds the package {package}.\n"
                "Its lists may be stale: python3 -m tests.vm kernels --refresh"
            )
        debs = self.home / "debs"
        deb = debs / Path(fields["Filename"]).name
        if not deb.exists():
            cache.say(f"downloading {package} {fields['Version']}")
            shell.run(
                ["apt-get", *self._options(), "download", package],
                what=f"downloading {package}",
                attempts=4,
                cwd=debs,
            )
            # apt names the file after the version, with its colon escaped, not after the archive.
            named = sorted(debs.glob(f"{package}_*.deb"))
            if not named:
                raise LabError(f"apt-get download said yes but left no {package}_*.deb in {debs}.")
            deb = named[-1]
        shell.run(["dpkg", "-x", deb, tree], what=f"unpacking {deb.name}")
        deb.unlink()
        return fields["Version"]
