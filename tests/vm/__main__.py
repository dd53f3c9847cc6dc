"""Commands of the VM lab: ``python3 -m tests.vm``, from the top of the checkout."""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
from pathlib import Path

from tests.vm import cache, job, kernels, machine, packages, record, setup, userland
from tests.vm.errors import LabError, leave

_EXAMPLES = """\
examples:
  sudo python3 -m tests.vm setup
      install QEMU and what else the lab needs (once)
  python3 -m tests.vm run --kernel 6.1 -- uname -a
      boot Debian's 6.1 kernel and run a command in it, as root, in the checkout
  python3 -m tests.vm run --kernel 7.2 --out results -- sh -c 'cat /proc/vmstat >/out/vmstat'
      bring files back: the guest's /out is the host's results/
  python3 -m tests.vm record --kernel 6.1 --load churn -o traces/churn-6.1
      record a trace of a load on that kernel

The first use of a kernel fetches it and builds a Debian userland for it (one to three minutes,
the latter as root); both stay in the cache, ~/.cache/directmap-lab or $DIRECTMAP_LAB_CACHE.
"""


def _add_guest_options(parser: argparse.ArgumentParser) -> None:
    guest = parser.add_argument_group("the guest")
    guest.add_argument(
        "--kernel",
        required=True,
        metavar="VERSION",
        help="5.10, 6.1, 6.12, 7.2, or any other that Debian's suites hold (6.17, 7.0.13, ...)",
    )
    guest.add_argument("--flavour", choices=kernels.FLAVOURS, default="amd64")
    guest.add_argument("--memory", default="8G", help="default: %(default)s; 1G entries need 6G")
    guest.add_argument("--cpus", type=int, default=2)
    guest.add_argument(
        "--la57",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="5-level page tables (default: 4-level)",
    )
    guest.add_argument("--append", default="", metavar="WORDS", help="for the kernel's command line")
    guest.add_argument("--device", action="append", default=[], metavar="DEVICE", help="one more, as QEMU's -device")
    guest.add_argument("--slots", metavar="SIZE", help="room for memory that is plugged in while the guest runs: 2G")
    guest.add_argument("--monitor", action="store_true", help="QEMU's monitor in the guest (tests/vm/loads/monitor.py)")
    guest.add_argument(
        "--for",
        action="append",
        default=[],
        choices=record.LOADS,
        help="what this load needs of the machine",
        dest="needs",
    )
    guest.add_argument("--aged", action="store_true", help="fragment the guest's memory first")
    guest.add_argument("--seed", type=int, default=1, help="for the load and the ageing")
    guest.add_argument("--timeout", type=float, default=900, metavar="SECONDS")
    guest.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    guest.add_argument("--systemd", action="store_true", help="boot a whole systemd, not a shell")
    guest.add_argument("--keep", action="store_true", help="keep the guest's console log")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.vm",
        description=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("setup", help="install what the lab needs on this machine (root)")
    run = commands.add_parser("run", help="run a command in a guest")
    _add_guest_options(run)
    run.add_argument("--out", type=Path, metavar="DIR", help="the host's end of the guest's /out")
    run.add_argument("argv", nargs="+", metavar="-- COMMAND")
    recorder = commands.add_parser("record", help="record a trace of a load in a guest")
    _add_guest_options(recorder)
    recorder.add_argument("--load", choices=record.LOADS, default="churn")
    recorder.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    recorder.add_argument("--force", action="store_true", help="replace an earlier recording")
    recorder.add_argument("--recorder-args", default="", metavar="ARGS", help="for collect record")
    recorder.add_argument("--load-args", default="", metavar="ARGS", help="such as '--scale 0.2'")
    prepare = commands.add_parser("prepare", help="fetch and build what a later run needs, without booting anything")
    prepare.add_argument("--kernel", action="append", default=[], metavar="VERSION")
    prepare.add_argument("--flavour", choices=kernels.FLAVOURS, default="amd64")
    prepare.add_argument("--suite", action="append", default=[], help="just the userland of a suite")
    prepare.add_argument("--refresh", action="store_true", help="fetch the newest kernel anew")
    listing = commands.add_parser("kernels", help="list the kernels that the suites hold")
    listing.add_argument("--flavour", choices=kernels.FLAVOURS, default="amd64")
    listing.add_argument("--refresh", action="store_true", help="fetch the package lists anew")
    return parser


def _job(args: argparse.Namespace, argv: list[str], out: Path) -> job.Job:
    kernel = kernels.ready(args.kernel, args.flavour)
    hardware = machine.Hardware(
        memory_mb=machine.memory_mb(args.memory),
        cpus=args.cpus,
        la57=args.la57,
        accel=machine.accelerator(args.accel, kernel),
        append=args.append,
        devices=tuple(args.device),
        slots_mb=machine.memory_mb(args.slots) if args.slots else 0,
        monitor=args.monitor,
    )
    for load in args.needs:
        hardware = hardware.with_needs(record.LOADS[load])
    prelude = ""
    if args.aged:
        prelude = f"python3 /repo/tests/vm/loads/age.py --seed {args.seed} >&2 || exit"
    return job.Job(
        argv=argv,
        kernel=kernel,
        userland=userland.ready(userland.suite_for(args.kernel)),
        hardware=hardware,
        out=out,
        timeout=args.timeout,
        systemd=args.systemd,
        keep=args.keep,
        prelude=prelude,
    )


def _run(args: argparse.Namespace) -> int:
    argv = args.argv[1:] if args.argv[0] == "--" else args.argv
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        return job.run(_job(args, argv, args.out.resolve()))
    out = Path(tempfile.mkdtemp(prefix="directmap-lab-out-"))
    try:
        return job.run(_job(args, argv, out))
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _record(args: argparse.Namespace) -> int:
    recording = record.Recording(
        load=args.load,
        seed=args.seed,
        target=args.output.resolve(),
        force=args.force,
        aged=args.aged,
        recorder_args=shlex.split(args.recorder_args),
        load_args=shlex.split(args.load_args),
    )
    record.check_target(recording.target, force=recording.force)
    return record.run(recording, _job(args, [], recording.target))


def _prepare(args: argparse.Namespace) -> int:
    if not args.kernel and not args.suite:
        raise LabError("Say what to prepare: --kernel VERSION or --suite SUITE, or several.")
    suites = dict.fromkeys(args.suite)
    for version in args.kernel:
        kernel = kernels.ready(version, args.flavour, refresh=args.refresh)
        print(f"kernel {version}: {kernel.release} from {kernel.suite}")
        suites[userland.suite_for(version)] = None
    for suite in suites:
        found = userland.ready(suite)
        print(f"userland {suite}: Python {found.python}, BCC {found.bcc}")
    return 0


def _kernels(args: argparse.Namespace) -> int:
    with cache.lock("apt"):
        apt = packages.Apt()
        apt.update(force=args.refresh)
        for release in kernels.releases(apt, args.flavour):
            print(release)
    return 0


_COMMANDS = {"run": _run, "record": _record, "prepare": _prepare, "kernels": _kernels}


def main() -> int:
    """Run one command of the lab; returns the exit status. Raises LabError."""
    args = _parser().parse_args()
    if args.command == "setup":
        setup.install()
        return 0
    return _COMMANDS[args.command](args)


if __name__ == "__main__":
    leave(main)
