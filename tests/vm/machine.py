"""QEMU: the command line of a guest, and whether KVM can run it here."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tests.vm import cache, shell
from tests.vm.errors import LabError
from tests.vm.kernels import Kernel
from tests.vm.userland import Userland

QEMU = "qemu-system-x86_64"
_KVM_SECONDS = 10


_SLOTS = 8


@dataclass(frozen=True)
class Needs:
    """What a load needs of the machine besides processors and memory; the fields are Hardware's."""

    devices: tuple[str, ...] = ()
    slots_mb: int = 0
    monitor: bool = False
    cpu: str = ""
    vmlinuz: bool = False


@dataclass(frozen=True)
class Hardware:
    """What the guest's machine is like."""

    memory_mb: int
    cpus: int
    la57: bool
    accel: str  # kvm or tcg
    append: str = ""  # more words for the kernel's command line
    devices: tuple[str, ...] = ()  # further ones, as QEMU's -device takes them
    slots_mb: int = 0  # memory that can be plugged in while the guest runs
    monitor: bool = False  # give the guest QEMU's monitor (QMP) as the port lab.monitor
    cpu: str = ""  # further properties of it, as QEMU's -cpu takes them
    vmlinuz: bool = False  # put the kernel's own image into the guest, as /run/lab/vmlinuz

    def with_needs(self, needs: Needs) -> Hardware:
        """The same machine with what a load needs besides."""
        return replace(
            self,
            devices=(*self.devices, *needs.devices),
            slots_mb=max(self.slots_mb, needs.slots_mb),
            monitor=self.monitor or needs.monitor,
            cpu=",".join(filter(None, (self.cpu, needs.cpu))),
            vmlinuz=self.vmlinuz or needs.vmlinuz,
        )

    def flags(self) -> list[str]:
        """The QEMU options for it."""
        if self.accel == "kvm":
            cpu = "host" if self.la57 else "host,la57=off"
            accel = "kvm"
        else:
            # Emulated, ERMS makes the kernel clear pages a byte at a time: five times slower.
            cpu = "max,erms=off,fsrm=off" if self.la57 else "max,erms=off,fsrm=off,la57=off"
            accel = "tcg,thread=multi,tb-size=512"
        if self.cpu:
            cpu += f",{self.cpu}"
        flags = ["-machine", "q35", "-accel", accel, "-cpu", cpu]
        memory = f"{self.memory_mb}M"
        if self.slots_mb:
            memory += f",slots={_SLOTS},maxmem={self.memory_mb + self.slots_mb}M"
        return [*flags, "-m", memory, "-smp", str(self.cpus)]


def version() -> str:
    """QEMU's own account of its version."""
    return shell.run([QEMU, "--version"], what="asking QEMU for its version").splitlines()[0]


def _bare(kernel: Kernel, initrd: Path, cmdline: str) -> list[str]:
    flags = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    flags += ["-kernel", str(kernel.vmlinuz), "-initrd", str(initrd), "-append", cmdline]
    return flags


@dataclass(frozen=True)
class Wiring:
    """The host's ends of a guest's ports: files or pipes that QEMU opens by path."""

    console: Path
    out: str
    err: str
    control: str
    monitor: Path  # a socket that QEMU makes there


def command(
    hardware: Hardware,
    kernel: Kernel,
    userland: Userland,
    initrd: Path,
    shares: dict[str, tuple[Path, bool]],
    more_disks: list[tuple[Path, bool]],
    wiring: Wiring,
) -> list[str]:
    """The QEMU command of a guest. `shares` maps a 9p tag to a directory and "read-only".

    `more_disks` come third and fourth, each with "what the guest writes stays".
    """
    # KASLR stays on: a tool that only works without it is of no use. panic=-1 with -no-reboot
    # ends QEMU on a panic. secretmem needs the switch before 6.5.
    cmdline = (
        "console=ttyS0 panic=-1 oops=panic loglevel=4 audit=0 secretmem.enable=1 "
        "systemd.show_status=0 systemd.unit=multi-user.target rdinit=/init "
    )
    argv = [QEMU, *hardware.flags(), *_bare(kernel, initrd, (cmdline + hardware.append).strip())]
    argv += ["-chardev", f"file,id=console,path={wiring.console}", "-serial", "chardev:console"]
    argv += ["-device", "virtio-serial-pci"]
    ports = {"out": wiring.out, "err": wiring.err, "control": wiring.control}
    for number, (name, end) in enumerate(ports.items(), start=1):
        argv += ["-chardev", f"file,id={name},path={end},append=on"]
        argv += ["-device", f"virtserialport,chardev={name},name=lab.{name},nr={number}"]
    if hardware.monitor:
        # QEMU meets itself at a socket: what the guest writes to the port, its own monitor reads.
        at = f"path={wiring.monitor}"
        argv += ["-chardev", f"socket,id=monitor,{at},server=on,wait=off", "-mon", "chardev=monitor,mode=control"]
        argv += ["-chardev", f"socket,id=asked,{at}"]
        argv += ["-device", "virtserialport,chardev=asked,name=lab.monitor,nr=4"]
    for device in hardware.devices:
        argv += ["-device", device]
    for image, stays in [(userland.image, False), (kernel.disk, False), *more_disks]:
        # snapshot=on: what the guest writes goes to a temporary file, the image stays pristine.
        snapshot = "off" if stays else "on"
        argv += ["-drive", f"file={image},format=raw,if=virtio,snapshot={snapshot},cache=unsafe"]
    for tag, (path, readonly) in shares.items():
        share = f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap"
        argv += ["-virtfs", share + (",readonly=on" if readonly else "")]
    argv += ["-device", "virtio-rng-pci"]
    return argv


def accelerator(wanted: str, kernel: Kernel) -> str:
    """Turn "auto" into "kvm" or "tcg"; what was found is remembered in the cache."""
    if wanted != "auto":
        return wanted
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    memory = cache.root() / "accel.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    # Another boot may be another kernel, or another host below this one.
    if known.get("boot_id") == boot_id and known.get("accel") in ("kvm", "tcg"):
        return str(known["accel"])
    accel = "kvm" if _kvm_boots(kernel) else "tcg"
    cache.say(f"/dev/kvm {'works' if accel == 'kvm' else 'does not boot a stock kernel'}: {accel}")
    fresh = memory.with_suffix(".new")
    fresh.write_text(json.dumps({"boot_id": boot_id, "accel": accel}), encoding="utf-8")
    fresh.rename(memory)
    return accel


def _kvm_boots(kernel: Kernel) -> bool:
    """Try KVM for a few seconds: it may exist and still hang with a stock kernel."""
    with tempfile.TemporaryDirectory(prefix="directmap-lab-") as name:
        console = Path(name) / "console"
        hardware = Hardware(memory_mb=1024, cpus=1, la57=False, accel="kvm")
        argv = [QEMU, *hardware.flags()]
        # With nothing but the modules' initramfs the kernel panics for want of an init: that it
        # came so far is all we ask.
        argv += _bare(kernel, kernel.initramfs, "console=ttyS0 panic=-1 rdinit=/none root=/none")
        argv += ["-serial", f"file:{console}"]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as qemu:
            deadline = time.monotonic() + _KVM_SECONDS
            while time.monotonic() < deadline and qemu.poll() is None:
                time.sleep(0.2)
            qemu.kill()
        try:
            return b"Kernel panic" in console.read_bytes()
        except FileNotFoundError:
            return False


def memory_mb(text: str) -> int:
    """Parse "8G" or "6144M" into MB."""
    units = {"G": 1024, "M": 1}
    number, unit = text[:-1], text[-1:].upper()
    if unit not in units or not number.isdigit() or not int(number):
        raise LabError(f"--memory {text}: expected a size such as 8G or 6144M.")
    return int(number) * units[unit]
