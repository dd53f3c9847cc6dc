"""A load like a kernel build: short compilations of generated C files under make, one job a CPU, always the same work.

Run as a program by the benchmark: `python3 build.py DIR OUT [--files N]` generates N sources in DIR (unless they are
there), removes what an earlier run built, builds, and writes one object of JSON to OUT: seconds, cpu_seconds and faults
(of all processes of the build), began_ns (CLOCK_MONOTONIC), files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["FILES_PER_CPU", "generate"]

FILES_PER_CPU = 50
"""About 20 s on a server CPU of 2023."""
FUNCTIONS_PER_FILE = 24
HEADERS = "ctype errno fcntl math pthread signal stdio stdlib string time unistd sys/mman sys/socket sys/stat sys/wait"
MAKEFILE = """\
OBJECTS := $(patsubst %.c,%.o,$(sort $(wildcard *.c)))
all.o: $(OBJECTS)
\t$(LD) -r -o $@ $(OBJECTS)
%.o: %.c
\tgcc -O2 -g -Wall -c -o $@ $<
"""


def generate(folder: Path, n_files: int) -> None:
    """Write the Makefile and `n_files` C files into `folder`; the same bytes for the same number."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Makefile").write_text(MAKEFILE)
    for number in range(n_files):
        (folder / f"part{number:04}.c").write_text(_source(number))


def _source(number: int) -> str:
    includes = "\n".join(f"#include <{header}.h>" for header in HEADERS.split())
    return "\n".join([includes, *(_function(number, i) for i in range(FUNCTIONS_PER_FILE))]) + "\n"


def _function(number: int, i: int) -> str:
    a, b, c = (number * 31 + i * 7) % 251 + 1, (number * 17 + i * 13) % 127 + 1, i % 5 + 2
    cases = "\n".join(f"\t\tcase {k}: sum += (sum << {k % 7}) ^ table[(i * {a + k}) & 63]; break;" for k in range(8))
    return f"""
struct item{i} {{ struct item{i} *next; char name[{b}]; unsigned long key[{c}]; }};

unsigned long part{number}_f{i}(struct item{i} *list, const unsigned long *table, unsigned int n)
{{
\tunsigned long sum = {a};

\tfor (unsigned int i = 0; i < n; i++) {{
\t\tswitch (table[i & 63] % {b + 8}) {{
{cases}
\t\tdefault: sum -= i * {b}UL;
\t\t}}
\t\tfor (struct item{i} *at = list; at; at = at->next)
\t\t\tif (strlen(at->name) > {c} && at->key[i % {c}] > sum)
\t\t\t\tsum ^= at->key[{c - 1}] * {a}UL;
\t}}
\treturn sum;
}}"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Build generated C files and say how long it took.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--files", type=int, default=FILES_PER_CPU * len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    if len(list(args.folder.glob("part*.c"))) != args.files:
        generate(args.folder, args.files)
    for built in args.folder.glob("*.o"):
        built.unlink()
    began = time.monotonic_ns()
    jobs = len(os.sched_getaffinity(0))
    done = subprocess.run(["make", "-s", f"-j{jobs}", "-C", args.folder], check=False)
    seconds = (time.monotonic_ns() - began) / 1e9
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "began_ns": began,
        "files": args.files,
        "faults": used.ru_minflt,
    }
    args.out.write_text(json.dumps(result))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
