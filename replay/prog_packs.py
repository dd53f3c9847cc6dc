"""Packs of BPF images as the kernel keeps them: a bitmap of 64-byte chunks a pack, first fit over the list of packs.

Source: kernel/bpf/core.c, bpf_prog_pack_alloc and bpf_prog_pack_free (commit 57631054fae6, Linux 5.18; size of a pack
2 MiB times possible nodes since d6170e4aaf86), and bpf_jit_binary_pack_alloc for what is added to a program's length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analyze.jit import kernel

__all__ = ["CHUNK_BYTES", "HEADER_BYTES", "PackRun", "chunks_of", "run_packs"]

Int64 = npt.NDArray[np.int64]

CHUNK_BYTES = 64
HEADER_BYTES = 8 + 16
"""`struct bpf_binary_header` and the 16 illegal bytes that bpf_jit_binary_pack_alloc adds to a program."""


@dataclass(frozen=True)
class PackRun:
    """What the packs did with a stream of images.

    Attributes:
        pack: [images] number of the pack that holds each image; -1: larger than a pack or none to be had, pages of its own.
        start: [images] first chunk in it.
        made_event, gone_event: [packs] the event that made the pack (-1: it was there before) and the one that emptied
            it (-1: still there).
        used_chunks, n_live: [events] chunks in use and packs in being after each event, the old one among them.
    """

    pack: Int64
    start: Int64
    made_event: Int64
    gone_event: Int64
    used_chunks: Int64
    n_live: Int64


def chunks_of(n_bytes: Int64) -> Int64:
    """Chunks that programs of `n_bytes` take (BPF_PROG_SIZE_TO_NBITS)."""
    return (n_bytes + HEADER_BYTES + CHUNK_BYTES - 1) // CHUNK_BYTES


def run_packs(
    event_image: Int64,
    event_is_free: npt.NDArray[np.bool_],
    n_chunks: Int64,
    pack_chunks: int,
    *,
    old_used: int | None,
    may_make: npt.NDArray[np.bool_] | None = None,
) -> PackRun:
    """Serve a stream of images.

    Args:
        event_image, event_is_free: [events] in order: image, whether it goes.
        n_chunks: [images] chunks of each.
        pack_chunks: chunks of a pack.
        old_used: start with a pack from before, of which the first so many chunks are in use and stay so; it is kept
            even where these are none. None: start with no pack.
        may_make: [events] whether there is memory for a new pack; always by default. Where not, pack is -1.
    """
    if may_make is None:
        may_make = np.ones(len(event_image), np.bool_)
    n_old = -1 if old_used is None else min(max(old_used, 0), pack_chunks)
    capacity = 4
    while True:
        pack = np.full(len(n_chunks), -1, np.int64)
        start = np.zeros(len(n_chunks), np.int64)
        life = np.full((2, capacity), -1, np.int64)
        levels = np.zeros((2, len(event_image)), np.int64)
        bitmap = np.zeros((capacity, pack_chunks), np.bool_)
        n_packs = _serve(event_image, event_is_free, n_chunks, pack, start, life, levels, bitmap, n_old, may_make)
        if n_packs >= 0:
            break
        capacity *= 4
    return PackRun(pack, start, life[0, :n_packs], life[1, :n_packs], levels[0], levels[1])


@kernel
def _find(bitmap: npt.NDArray[np.bool_], n: int) -> int:
    """First chunk of the first run of n free chunks; -1 if there is none (bitmap_find_next_zero_area)."""
    run = 0
    for i in range(len(bitmap)):
        if bitmap[i]:
            run = 0
        else:
            run += 1
            if run == n:
                return i - n + 1
    return -1


@kernel
def _serve(
    event_image: Int64, event_is_free: npt.NDArray[np.bool_], n_chunks: Int64, pack: Int64, start: Int64,
    life: Int64, levels: Int64, bitmap: npt.NDArray[np.bool_], n_old: int, may_make: npt.NDArray[np.bool_],
) -> int:  # fmt: skip
    """Number of packs made, -1 when `bitmap` has room for no more. `n_old`: chunks in use in an old pack, -1: there is none."""
    n_packs = live = 1 if n_old >= 0 else 0
    used = max(n_old, 0)
    in_use = np.zeros(len(bitmap), np.int64)
    keeps = np.zeros(len(bitmap), np.int64)
    if n_old >= 0:
        bitmap[0, :n_old] = True
        in_use[0] = n_old
        keeps[0] = 1  # an old pack is never emptied
    for event in range(len(event_image)):
        image = event_image[event]
        n = n_chunks[image]
        if event_is_free[event]:
            p = pack[image]
            if p >= 0:
                bitmap[p, start[image] : start[image] + n] = False
                used -= n
                in_use[p] -= n
                if in_use[p] + keeps[p] == 0:
                    life[1, p] = event
                    live -= 1
        elif n <= bitmap.shape[1]:
            p, at = 0, -1
            for p in range(n_packs):
                if life[1, p] < 0 and bitmap.shape[1] - in_use[p] >= n:
                    at = _find(bitmap[p], n)
                    if at >= 0:
                        break
            if at < 0 and may_make[event]:
                if n_packs >= len(bitmap):
                    return -1
                p, at = n_packs, 0
                life[0, p] = event
                n_packs += 1
                live += 1
            if at >= 0:
                pack[image], start[image] = p, at
                bitmap[p, at : at + n] = True
                in_use[p] += n
                used += n
        levels[0, event], levels[1, event] = used, live
    return n_packs
