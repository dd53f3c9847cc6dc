"""The same users on every kernel: so many modules, BPF programs, secret areas, in an order that the seed alone decides.

For comparing kernels: the modules are chosen among those of lone_modules.txt, which need no other module on Debian's 5.10,
6.1, 6.12 and 7.2 (by their modules.dep); programs have the sizes that a fleet's have. Every actor is a process that
takes ordinary memory besides, or the special pages would all come to lie in one frame.
"""

from __future__ import annotations

import contextlib
import platform
import random
import signal
import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):  # run as a file: make the checkout importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.loads import syscalls
from tests.vm.loads.actors import Act, Cast, Memory
from tests.vm.loads.churn import secret
from tests.vm.loads.counted import module
from tests.vm.loads.report import Report, parser

# Song Liu, 2022-11 (the bpf_prog_pack threads): half of a fleet's programs are below 500 bytes, three quarters below 2 kB.
_MEDIAN_BYTES, _SIGMA = 500, 2.05
_LARGEST_BYTES = 120_000
_BYTES_AN_ADDITION = 7
CROWD = 60
NAMES = Path(__file__).with_name("lone_modules.txt")


def chosen(seed: int, number: int) -> list[tuple[str, Path]]:
    """Modules for a seed, of those that load alone on every kernel that is compared; the same whatever kernel this is.

    Raises SystemExit where this kernel lacks one.
    """
    home = Path("/lib/modules") / platform.release()
    paths = [line.partition(":")[0] for line in (home / "modules.dep").read_text("ascii").splitlines()]
    files = {path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_"): home / path for path in paths}
    names = random.Random(seed).sample(NAMES.read_text("ascii").split(), number)
    lacking = [name for name in names if name not in files]
    if lacking:
        sys.exit(f"users: this kernel has no module {', '.join(lacking)}: take it out of {NAMES.name}")
    return [(name, files[name]) for name in names]


def programs(sizes: list[int]) -> Act:
    """Load BPF programs of these sizes in bytes of machine code and hold them."""

    def act(counts: Counter[str]) -> None:
        for size in sizes:
            syscalls.load_filter(max(size // _BYTES_AN_ADDITION, 1))
            counts["bpf_programs"] += 1

    return act


def sizes(rng: random.Random) -> list[int]:
    """What one process loads: two to eight programs."""
    number = rng.randrange(2, 9)
    return [min(int(rng.lognormvariate(0, _SIGMA) * _MEDIAN_BYTES), _LARGEST_BYTES) for _ in range(number)]


def memory(rng: random.Random) -> Memory:
    """A process's ordinary memory; 1 to 4 MB of it the kernel's, which moves later special pages on to other frames."""
    some = Memory.some(rng)
    some.piped = rng.randrange(2, 9) * 2**19
    return some


def main() -> int:
    """Run the load."""
    options = parser(__doc__ or "", seconds=400)
    options.add_argument("--modules", type=int, default=0, help="to load, each by a process of its own")
    options.add_argument("--programs", type=int, default=0, help="processes that load two to eight BPF programs")
    options.add_argument("--secrets", type=int, default=0, help="processes with 4 to 64 pages of secret memory")
    asked = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = random.Random(asked.seed)
    report = Report("users", asked)
    modules = [("module", module(name, path)) for name, path in chosen(asked.seed, asked.modules)]
    acts: list[tuple[str, Act]] = modules
    acts += [("program", programs(sizes(rng))) for _ in range(asked.programs)]
    acts += [("secret", secret(rng.randrange(4, 65))) for _ in range(asked.secrets)]
    rng.shuffle(acts)
    report.facts["modules"] = [name for name, _ in chosen(asked.seed, asked.modules)]
    cast = Cast(report.counts)
    with contextlib.suppress(KeyboardInterrupt):
        for _, act in acts:
            if report.out_of_time():
                break
            cast.enter(act, memory(rng))
            if len(cast) > CROWD and rng.random() < 1 / 2:
                cast.leave_one(rng)
        cast.wait_all()
    cast.leave_all()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
