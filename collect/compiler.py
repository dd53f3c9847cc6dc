"""BCC, the distribution's package: finding it, and compiling a program with it."""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from collect.errors import HostError
from collect.headers import compiled_with, kernel_headers, our_headers

__all__ = ["Compiled", "compile_program", "import_bcc", "stderr_to"]

SYSTEM_PACKAGES = (
    "/usr/lib/python3/dist-packages",
    "/usr/lib/python{}.{}/site-packages",
    "/usr/lib64/python{}.{}/site-packages",
)


def import_bcc() -> ModuleType:
    """BCC's Python module: from the environment, else by path from the distribution's packages.

    Raises HostError naming the package to install; PyPI's namesake, a library about crystals, is told apart by `BPF`.
    """
    advice = "install the distribution's package: python3-bpfcc (Debian, Ubuntu) or python3-bcc (Fedora, RHEL)"
    found: str | None = None
    try:
        module = importlib.import_module("bcc")
        if hasattr(module, "BPF"):
            return module
        found = getattr(module, "__file__", None) or "?"
    except (ImportError, OSError):  # OSError: its library, libbcc, is missing
        pass
    for pattern in SYSTEM_PACKAGES:
        folder = Path(pattern.format(sys.version_info.major, sys.version_info.minor))
        if not (folder / "bcc" / "__init__.py").is_file():
            continue
        for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
            del sys.modules[name]
        sys.path.insert(0, str(folder))
        try:
            module = importlib.import_module("bcc")
        except (ImportError, OSError) as error:
            raise HostError(
                f"{folder}/bcc: does not load into Python {platform.python_version()} ({error}); {advice}"
            ) from None
        finally:
            sys.path.remove(str(folder))
        if hasattr(module, "BPF"):
            return module
    if found:
        raise HostError(f"{found}: this 'bcc' is PyPI's namesake, not the BPF compiler; {advice}")
    raise HostError(f"bcc: not found; {advice}")


class Compiled(NamedTuple):
    """A program that was compiled, and loaded where bcc attaches by name: bcc's object, and whose headers it took."""

    bpf: Any
    headers: str


def compile_program(
    bcc: ModuleType, text: str, flags: Sequence[str], before_load: Callable[[Any, bytes], object] | None = None
) -> Compiled:
    """Compile with our own headers, or else with the kernel's. Raises HostError with what the last try said.

    `before_load` is called with bcc's module and the name of each program in it, before any is loaded.
    """

    class Compiling(bcc.BPF):  # type: ignore[misc, name-defined]
        def _trace_autoload(self) -> None:
            for i in range(bcc.lib.bpf_num_functions(self.module) if before_load else 0):
                before_load(self.module, bcc.lib.bpf_function_name(self.module, i))  # type: ignore[misc]
            super()._trace_autoload()

    # <linux/ptrace.h> of 7.x holds anonymous members that an older bcc's clang refuses without these.
    flags = [*flags, "-fms-extensions", "-Wno-microsoft-anon-tag", "-Wno-unused-function"]
    tries: list[Callable[[], AbstractContextManager[str]]] = [our_headers]
    if (headers := kernel_headers()) is not None:
        tries.append(partial(compiled_with, headers))
    said: list[str] = []
    for headers_of in tries:
        with headers_of() as name, stderr_to(said):
            try:
                return Compiled(Compiling(text=text, cflags=flags), name)
            except Exception as error:  # bcc raises bare Exception for all that can go wrong
                said.append(str(error))
                # What compiled and was refused by the kernel is refused with other headers too.
                if "compile" not in str(error):
                    break
    reason = said[-1]
    messages = " ".join(line.strip() for text in said[:-1] for line in text.splitlines() if _tells_why(line))
    raise HostError(
        f"the BPF programs do not load here: {reason}{f' ({messages[:400]})' if messages else ''}; "
        "`directmap-collect check` says what is missing"
    )


def _tells_why(line: str) -> bool:
    """Of what the compiler and the verifier write: errors, and refusals, which begin with a register or "The"."""
    return (
        "error" in line.lower() or re.match(r"R\d+ |The sequence|BPF program is too large|invalid ", line) is not None
    )


@contextlib.contextmanager
def stderr_to(said: list[str]) -> Iterator[None]:
    """Keep what the compiler and the verifier write to the descriptor 2, for one message instead of pages of them."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            file.seek(0)
            text = file.read().decode(errors="replace").strip()
            if text:
                said.insert(0, text)
