"""Places in the kernel where probes can sit, and the two ways in which the loads attach them."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.vm.loads import syscalls

_TRACING = Path("/sys/kernel/tracing")
_KPROBE_PMU = Path("/sys/bus/event_source/devices/kprobe/type")
# Families of functions that an idle guest hardly ever calls, so that probes cost nothing but
# their pages.
_QUIET = (
    "acpi_", "agp_", "ata_", "cpufreq_", "devfreq_", "dma_buf_", "drm_", "efi_", "hid_", "hwmon_",
    "i2c_", "input_", "iommu_", "kexec_", "led_", "mdio_", "mmc_", "nvmem_", "of_", "pci_",
    "pcie_", "phy_", "pinctrl_", "pm_", "power_supply_", "ptp_", "regulator_", "rfkill_", "rtc_",
    "scsi_", "serial8250_", "sfp_", "spi_", "thermal_", "tpm_", "usb_", "vga_", "watchdog_",
    "xfrm_",
)  # fmt: skip


class Sites:
    """Functions to probe, in an order that the seed decides."""

    def __init__(self, rng: random.Random) -> None:
        self._pmu = int(_KPROBE_PMU.read_text("ascii")) if _KPROBE_PMU.exists() else None
        seen: Counter[str] = Counter()
        with (_TRACING / "available_filter_functions").open(encoding="ascii") as listed:
            for line in listed:
                name = line.split()[0]
                # A name in [brackets] behind it would be a module's, which may go away.
                if name.startswith(_QUIET) and "[" not in line and "." not in name:
                    seen[name] += 1
        # From 6.6 on the kernel refuses a name that stands for several functions.
        names = sorted(name for name, times in seen.items() if times == 1)
        rng.shuffle(names)
        self._names = names
        self._next = 0

    def take(self, number: int) -> list[str]:
        """The next functions of the list, from its start again at its end."""
        taken = [self._names[(self._next + i) % len(self._names)] for i in range(number)]
        self._next += number
        return taken

    def kprobes(self, number: int) -> Callable[[Counter[str]], Callable[[], None] | None]:
        """An act that attaches kprobes inside functions, each of which needs an insn slot."""
        names = self.take(number)
        pmu = self._pmu

        def attach(counts: Counter[str]) -> None:
            if pmu is None:
                counts["kprobes_unsupported"] += 1
                return
            for name in names:
                # Behind the call to fentry, at 5, or at 9 where an endbr64 comes before it; at 0
                # the kernel would use ftrace and need no slot.
                for offset in (5, 9):
                    with contextlib.suppress(OSError):
                        syscalls.kprobe(pmu, name, offset)
                        counts["kprobes_attached"] += 1
                        break
                else:
                    counts["kprobes_refused"] += 1

        return attach

    def function_tracer(self, label: str, number: int) -> Callable[[Counter[str]], Callable[[], None] | None]:
        """An act that traces functions in a tracing instance of its own: a trampoline each."""
        names = self.take(number)
        instance = _TRACING / "instances" / label

        def attach(counts: Counter[str]) -> Callable[[], None] | None:
            try:
                instance.mkdir()
                (instance / "set_ftrace_filter").write_text(" ".join(names) + "\n", "ascii")
                (instance / "current_tracer").write_text("function\n", "ascii")
            except OSError:
                counts["function_tracers_refused"] += 1
                with contextlib.suppress(OSError):
                    instance.rmdir()
                return None
            counts["function_tracers"] += 1

            def detach() -> None:
                with contextlib.suppress(OSError):
                    (instance / "current_tracer").write_text("nop\n", "ascii")
                    instance.rmdir()

            return detach

        return attach
