"""Which flush of the whole TLB is a split's: the program's own C text, compiled here and given stacks.

The wrong kind, a flush in the reclaim of a split's allocation, cannot be provoked in the lab.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from collect import records

SOURCE = (Path(records.__file__).parent / "bpf" / "splits.c").read_text()
CHOKE, FLUSH = 0xFFFF_FFFF_8107_0000, 0xFFFF_FFFF_8108_0000
CALLED = CHOKE + 0x6C1
"""A return address in the choke point."""
HARNESS = """
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define __always_inline inline __attribute__((always_inline))
typedef uint64_t u64;
static u64 stack[64];
static long n_frames;

static int walk_stack(void *ctx, u64 *ip, unsigned size)
{
	if (n_frames < 0)
		return -14;
	memcpy(ip, stack, n_frames * 8 < size ? n_frames * 8 : size);
	return 0;
}
"""
MAIN = """
int main(int argc, char **argv)
{
	n_frames = argc > 1 && !strcmp(argv[1], "-") ? -1 : argc - 1;
	for (int i = 0; i < n_frames; i++)
		stack[i] = strtoull(argv[i + 1], NULL, 16);
	puts(is_split(NULL) ? "split" : "other");
}
"""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) here")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("splits")
    defines = "\n".join(re.findall(r"^#define (?:FLUSH_FRAMES|FRAMES_BETWEEN) .*$", SOURCE, re.MULTILINE))
    function = SOURCE[SOURCE.index("static __always_inline bool is_split(") :]
    function = function[: function.index("\n}\n") + 3]
    (folder / "splits.c").write_text(HARNESS + defines + "\n" + function + MAIN)
    bounds = {"CHOKE_BEGIN": CHOKE, "CHOKE_END": CHOKE + 0xC00, "FLUSH_BEGIN": FLUSH, "FLUSH_END": FLUSH + 0x90}
    flags = [f"-D{name}={value:#x}ULL" for name, value in bounds.items()]
    subprocess.run(["cc", "-w", *flags, "-o", folder / "splits", folder / "splits.c"], check=True)
    return folder / "splits"


def told(program: Path, *frames: int) -> str:
    argv = [program, *(f"{frame:x}" for frame in frames)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


OURS = [0xFFFF_FFFF_C011_2233, 0xFFFF_FFFF_C022_3344]
"""The program and its trampoline, which fentry leaves on the stack."""
ABOVE = [0xFFFF_FFFF_8107_1000 + 64 * i for i in range(6)]


@pytest.mark.parametrize("ours", [[], OURS], ids=["kprobe", "fentry"])
@pytest.mark.parametrize("between", [0, 1, 2])
def test_a_flush_from_the_choke_point_is_a_split_s(program: Path, ours: list[int], between: int) -> None:
    out_of_line = [0xFFFF_FFFF_8106_F000 + i for i in range(between)]
    assert told(program, *ours, FLUSH + 5, *out_of_line, CALLED, *ABOVE) == "split"


@pytest.mark.parametrize("ours", [[], OURS], ids=["kprobe", "fentry"])
def test_a_flush_in_the_reclaim_of_its_allocation_is_not(program: Path, ours: list[int]) -> None:
    """cpa_flush, change_page_attr_set_clr, set_pages_array_wb, the shrinker, ..., the allocator, the choke point."""
    reclaim = [0xFFFF_FFFF_8120_0000 + 64 * i for i in range(9)]
    assert told(program, *ours, FLUSH + 5, *reclaim, CALLED, *ABOVE) == "other"
    assert told(program, *ours, FLUSH + 5, *reclaim[:5], CALLED) == "other"


def test_the_edges_of_both_functions_count(program: Path) -> None:
    assert told(program, FLUSH, CHOKE) == "split"
    assert told(program, FLUSH + 0x8F, CHOKE + 0xBFF) == "split"
    assert told(program, FLUSH + 0x90, CALLED) == "other"
    assert told(program, FLUSH, CHOKE + 0xC00) == "other"
    assert told(program, FLUSH, CHOKE - 1) == "other"


def test_a_stack_that_cannot_be_walked_is_believed(program: Path) -> None:
    """Then the comparison with the rebuilt splits decides: nothing is dropped in silence."""
    argv = [program, "-"]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip() == "split"
