"""A kernel image loaded for kexec and dropped again, several times; nothing is ever booted.

Linux 6.17 maps the control page of an image read-only and executable in the direct map itself
(arch/x86/kernel/machine_kexec_64.c, machine_kexec_prepare), the one change of NX there that is no alias. Older kernels
change nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads.actors import Memory
from tests.vm.loads.report import Report, parser

IMAGE = Path("/run/lab/vmlinuz")
_SYS_KEXEC_FILE_LOAD = 320
_UNLOAD, _NO_INITRAMFS = 1, 4
_libc = ctypes.CDLL(None, use_errno=True)


def kexec_file_load(kernel: int, command_line: bytes, flags: int) -> None:
    """kexec_file_load(2). Raises OSError."""
    text = ctypes.c_char_p(command_line)
    size = ctypes.c_ulong(len(command_line) + 1 if command_line else 0)
    if _libc.syscall(ctypes.c_long(_SYS_KEXEC_FILE_LOAD), kernel, -1, size, text, ctypes.c_ulong(flags)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"kexec_file_load: {os.strerror(code)}")


def main() -> int:
    """Run the load: 8 times at --scale 1."""
    options = parser(__doc__ or "", seconds=200).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(options.seed)
    report = Report("kexec", options)
    kernel = os.open(IMAGE, os.O_RDONLY)
    held = []
    with contextlib.suppress(KeyboardInterrupt):
        for _ in range(max(1, round(8 * options.scale))):
            if report.out_of_time():
                break
            memory = Memory.some(rng)
            memory.take()
            held.append(memory)
            kexec_file_load(kernel, b"console=ttyS0", _NO_INITRAMFS)
            report.counts["images_loaded"] += 1
            kexec_file_load(-1, b"", _UNLOAD)
            report.counts["images_unloaded"] += 1
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
