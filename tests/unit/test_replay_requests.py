"""Requests made by hand, for this and the other tests of the replay, and how events are ordered."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collect.schema import RegionKind
from replay.requests import NEVER, Requests
from replay.users import User

MODULE, BPF, SECRET, ROX = "module", "bpf", "secret", "rox"
_KIND = {
    MODULE: (RegionKind.MODULE_ALLOC, 0, User.MODULE),
    BPF: (RegionKind.MODULE_ALLOC, RegionKind.BPF_IMAGE, User.BPF),
    SECRET: (RegionKind.SECRET_PAGE, RegionKind.SECRET_PAGE, User.SECRETMEM),
    ROX: (RegionKind.ROX_BLOCK, 0, User.OTHER),
}


def requests_of(
    rows: Sequence[tuple[str, int, int, int | None]], *, n_bytes: Sequence[int] = (), has_packs: bool = False
) -> Requests:
    """Requests from rows (kind, pages, allocated at, freed at or None), on frames 0, 1, 2, ..."""
    kinds = [_KIND[row[0]] for row in rows]
    alloc = np.array([row[2] for row in rows], np.int64)
    free = np.array([NEVER if row[3] is None else row[3] for row in rows], np.int64)
    first = np.concatenate(([0], np.cumsum([row[1] for row in rows]))).astype(np.int64)
    zeros = np.zeros(len(rows), np.int64)
    return Requests(
        region_id=np.arange(1, len(rows) + 1, dtype=np.uint64),
        kind=np.array([kind for kind, _, _ in kinds], np.uint8),
        asked_kind=np.array([asked for _, asked, _ in kinds], np.uint8),
        asked_bytes=np.array(n_bytes, np.int64) if n_bytes else zeros,
        in_jit=np.array([row[0] == BPF for row in rows], np.bool_),
        user=np.array([user for _, _, user in kinds], np.uint8),
        order=np.array([9 if row[0] == ROX else 0 for row in rows], np.uint8),
        alloc_ns=alloc,
        free_ns=free,
        begin_ns=alloc,
        end_ns=free,
        alloc_pid=zeros,
        free_pid=zeros,
        address=zeros.astype(np.uint64),
        first=first,
        pfn=np.arange(first[-1]),
        has_packs=has_packs,
    )


def test_events_come_in_order_of_time_and_frees_first() -> None:
    requests = requests_of([(MODULE, 1, 10, 30), (MODULE, 1, 30, None), (MODULE, 1, 20, 25)])
    request, is_free, ns = requests.events(np.ones(3, np.bool_))
    assert list(zip(request, is_free, ns, strict=True)) == [
        (0, False, 10),
        (2, False, 20),
        (2, True, 25),
        (0, True, 30),
        (1, False, 30),
    ]


def test_counts_by_user() -> None:
    requests = requests_of([(MODULE, 3, 1, None), (SECRET, 1, 2, None), (SECRET, 1, 3, None)])
    assert requests.by_user() == {"secretmem": 2, "module": 1}
    assert list(requests.owner) == [0, 0, 0, 1, 2]
