"""Builds the module of the load `rules` for a kernel of the lab: `python3 -m tests.vm.rules_module 6.1 [5.10 ...]`.

With the kernel's own headers and kbuild, out of its disk, and this machine's gcc, which need not be the kernel's: options
that it does not know are left out or given another way. Programs of a newer Debian's kbuild run under that Debian's own C
library, out of the lab's userland. The module goes to lab/module/cpa_rules-RELEASE.ko, where the load looks for it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tests.vm import kernels, shell, userland
from tests.vm.errors import LabError

__all__ = ["build"]

_HERE = Path(__file__).resolve().parent
_CHECKOUT = _HERE.parents[2]
_SOURCES = ("cpa_rules.c", "Kbuild")
_LIBRARIES = ("libc.so.6", "libm.so.6", "libelf.so.1", "libz.so.1", "libzstd.so.1", "libcrypto.so.3")
_LOADER = "ld-linux-x86-64.so.2"
_LIB_DIR = "/usr/lib/x86_64-linux-gnu"

# Alignment has another name before gcc 14, and no option of the others changes what the module does.
_CC = """\
#!/bin/bash
for word; do
	case $word in
	-fmin-function-alignment=*) word=-falign-functions=${word#*=} ;;
	-fzero-init-padding-bits=*|-fdiagnostics-show-context*) continue ;;
	esac
	words+=("$word")
done
exec gcc "${words[@]}"
"""


def build(version: str, flavour: str = "amd64") -> Path:
    """Build it; returns the module's path. Raises LabError where headers, gcc or make are missing or fail."""
    kernel = kernels.ready(version, flavour)
    if not kernel.headers:
        raise LabError(f"Debian's suites hold no headers for {kernel.release}: no module can be built for it.")
    with tempfile.TemporaryDirectory(prefix="directmap-rules-") as name:
        work = Path(name)
        for part in ("/src", "/kbuild"):
            shell.run(["debugfs", "-R", f"rdump {part} {work}", kernel.disk], what="reading the kernel's headers")
        headers = _settle(work, kernel.release)
        _run_with_own_library(work, version)
        cc = work / "cc"
        cc.write_text(_CC, encoding="ascii")
        cc.chmod(0o755)
        module = work / "module"
        module.mkdir()
        for source in _SOURCES:
            shutil.copy(_HERE / source, module)
        shell.run(["make", "-C", headers, f"M={module}", f"CC={cc}", "modules"], what="building the module")
        shell.run(["strip", "--strip-debug", module / "cpa_rules.ko"], what="stripping the module")
        target = _CHECKOUT / "lab" / "module" / f"cpa_rules-{kernel.release}.ko"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module / "cpa_rules.ko", target)
    return target


def _settle(work: Path, release: str) -> Path:
    """Point the headers' links and names at where they lie now; returns the headers of this flavour."""
    [kbuild] = (work / "kbuild").iterdir()
    for tree in (work / "src").glob("linux-headers-*"):
        for part in ("scripts", "tools"):
            link = tree / part
            if link.is_symlink():
                link.unlink()
                link.symlink_to(kbuild / part)
        for file in (tree / "Makefile", tree / ".kernelvariables"):
            if file.exists():
                file.write_text(file.read_text(encoding="utf-8").replace("/usr/src", str(work / "src")))
        (tree / "vmlinux").unlink(missing_ok=True)  # BTF of the module, which nobody needs, would want pahole
    return work / "src" / f"linux-headers-{release}"


def _run_with_own_library(work: Path, version: str) -> None:
    """Wrap kbuild's programs that this machine's C library is too old for."""
    libraries = work / "lib"
    for program in sorted((work / "kbuild").rglob("*")):
        if program.is_symlink() or not program.is_file() or program.read_bytes()[:4] != b"\x7fELF":
            continue
        if "not found" not in shell.run(["sh", "-c", 'ldd "$0" 2>&1 || true', program], what="looking at kbuild"):
            continue
        if not libraries.exists():
            libraries.mkdir()
            _fetch_libraries(libraries, version)
        own = program.with_name(program.name + ".own")
        program.rename(own)
        program.write_text(f'#!/bin/sh\nexec {libraries / _LOADER} --library-path {libraries} {own} "$@"\n')
        program.chmod(0o755)


def _fetch_libraries(target: Path, version: str) -> None:
    image = userland.ready(userland.suite_for(version)).image
    listing = shell.run(["debugfs", "-R", f"ls -p {_LIB_DIR}", image], what="reading the userland")
    files = {entry.split("/")[5]: int(entry.split("/")[2], 8) for entry in listing.splitlines() if entry.count("/") > 5}
    for name in (*_LIBRARIES, _LOADER):
        real = name
        if name not in files or files[name] >> 12 == 0o12:  # a link: its file is the one with more of a version
            stem = re.escape(name.removesuffix("".join(re.findall(r"\.so.*", name))))
            real = max((file for file in files if re.fullmatch(rf"{stem}(-[\d.]+)?\.so[\d.]*", file) and files[file] >> 12 == 0o10), default=name)  # fmt: skip
        shell.run(["debugfs", "-R", f"dump {_LIB_DIR}/{real} {target / name}", image], what="reading the userland")
    (target / _LOADER).chmod(0o755)
