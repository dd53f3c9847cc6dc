"""`bpf_prog_pack`: many BPF images in one area that is made read-only once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES, Pte
from replay.placement import GONE, INVALID_CLR, SYMBOLIC, Acts, Host, Placement, Served, as_recorded
from replay.policies.base import VIEW, Outcome, Parameter, Policy
from replay.prog_packs import CHUNK_BYTES, PackRun, chunks_of, run_packs
from replay.requests import Requests
from replay.spread import spread
from replay.users import User

__all__ = ["ProgPack"]

Int64 = npt.NDArray[np.int64]

PAGE_BYTES = 4096
_RW = int(Pte.RW)


class ProgPack(Policy):
    """BPF images share packs of 2 MiB times nodes; everything else stays as recorded.

    Source: Song Liu, commit 57631054fae6 (Linux 5.18), kernel/bpf/core.c; pack size since d6170e4aaf86.

    Mechanism: see `replay.prog_packs`. A new pack is made read-only and executable once, page by page in the direct
    map because vmalloc maps it by 4K entries; images written into it later change no mapping. An emptied pack is
    freed, and vfree resets its pages one by one. A larger image keeps its own pages, as recorded.

    Not modelled: how full the packs from before the recording are, and where the 512 x nodes single pages of a new
    pack come from. Results span two ways: a pack from before has room; and it has none, and each new pack's pages are
    spread over as many frames as the recorded kernel's own image pages were, none of them met before.
    Programs that come to need a pack sooner because of alignment by the JIT, and trampolines, which older kernels
    allocate as whole pages and the pack takes in later versions.
    """

    name = "prog-pack"
    title = "bpf_prog_pack (Linux 5.18)"
    parameters: ClassVar[dict[str, Parameter]] = {
        "old-pack": Parameter(
            "maybe",
            "whether a pack from before the recording has room for its images: yes, no, or nobody knows",
            ("maybe", "yes", "no"),
        ),
        "pages": Parameter(
            HUGE_FRAME_PAGES,
            "size of a pack a node with memory (BPF_PROG_PACK_SIZE, d6170e4aaf86)",
            lowest=1,
            highest=1 << 15,
            unit="pages",
        ),
        "requests": VIEW,
    }

    def place(self, requests: Requests, host: Host) -> Outcome:
        images = requests.in_jit
        if requests.has_packs and not self.as_asked:
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The recorded kernel already has bpf_prog_pack."]
            )
        if not images.any():
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The trace holds no BPF image: nothing to pack."]
            )
        pages = self.number("pages") * host.n_nodes
        small = images & (chunks_of(requests.asked_bytes) <= pages * PAGE_BYTES // CHUNK_BYTES)
        of_images = requests.pfn[small[requests.owner()]]
        if (of_images < 0).all():  # out of packs: nobody knows; as densely as what else the kernel took in single pages
            of_images = requests.pfn[(requests.order == 0)[requests.owner()]]
        wide = max(spread(of_images, pages), host.n_nodes)
        event_request, is_free, _ = requests.events(small)
        held = np.cumsum(np.where(is_free, -1, 1) * chunks_of(requests.asked_bytes)[event_request])
        kib = -(-int(held.max(initial=0)) * CHUNK_BYTES // 1024)
        old = self.word("old-pack")
        placements = [self.placed(requests, host, old_pack=True)] if old != "no" else []
        if old != "yes":
            placements.append(self.placed(requests, host, n_blocks=wide))
        return Outcome(
            placements,
            caveats=[
                "Where packs are used, one was there before the recording: the recorder's own programs live in it. Lower "
                f"bound: packs from before have room for the {kib} KiB that images took at most. Upper bound: they are "
                f"full, and each new pack's {pages} single pages, which the recorded kernel never allocated, touch "
                f"{wide} new frames, the spread of as many of the recorded images' own pages (in theory none to {pages})."
            ],
            narrow=["The same load recorded on a kernel with packs tells how full they are and where their pages lie."],
        )

    def placed(
        self, requests: Requests, host: Host, *, old_pack: bool = False, n_blocks: int | None = None
    ) -> Placement:
        """One way it may have gone.

        Args:
            old_pack: an empty pack from before the recording is there and stays.
            n_blocks: 2M frames that the pages of a new pack touch; as few as can be by default.
        """
        pages = self.number("pages") * host.n_nodes
        n_blocks = n_blocks or host.n_nodes
        event_request, is_free, event_ns = requests.events(requests.in_jit)
        chunks = chunks_of(requests.asked_bytes)
        run = run_packs(event_request, is_free, chunks, pages * PAGE_BYTES // CHUNK_BYTES, old_pack=old_pack)
        in_pack = run.pack >= 0
        n_blocks_all = min(int(np.count_nonzero(run.made_event >= 0)) * n_blocks, host.n_frames)
        return Placement(
            dest=np.where(in_pack[requests.owner()], GONE, requests.pfn),
            swallowed=in_pack,
            n_blocks=n_blocks_all,
            in_pieces=np.ones(n_blocks_all, np.bool_),
            acts=_acts(run, event_ns, pages, n_blocks, max(n_blocks_all, 1)),
            idle_ns=event_ns,
            idle_pages=run.n_live * pages - -(-run.used_chunks * CHUNK_BYTES // PAGE_BYTES),
            state=np.where(in_pack, Served.SERVED, Served.AS_RECORDED).astype(np.uint8),
        )


def _acts(run: PackRun, event_ns: Int64, pack_pages: int, n_blocks: int, n_blocks_all: int) -> Acts:
    """Making each pack read-only (and executable, which the direct map never sees), and its reset when it goes.

    Blocks are new for each pack, until there have been as many as the machine has frames.
    """
    made_event, gone_event = (events[run.made_event >= 0] for events in (run.made_event, run.gone_event))
    n_packs = len(made_event)
    pack = np.repeat(np.arange(n_packs), n_blocks)
    part = np.tile(np.arange(n_blocks), n_packs)
    pages = pack_pages // n_blocks + (part < pack_pages % n_blocks)
    block = np.arange(n_packs * n_blocks) % n_blocks_all
    head = part == 0  # calls and flushes are counted once a pack
    place = SYMBOLIC + block * HUGE_FRAME_PAGES
    made = Acts.of(
        event_ns[made_event[pack]], place, pages, mask_clr=_RW, n_calls=2 * head, n_call_flushes=2 * head, user=User.BPF
    )
    gone = gone_event[pack] >= 0
    when = event_ns[gone_event[pack][gone]]
    place, pages, head = place[gone], pages[gone], head[gone]
    return Acts.joined(
        made,
        Acts.of(
            when,
            place,
            pages,
            mask_clr=INVALID_CLR,
            n_calls=pages,
            n_range_flushes=head.astype(np.int64),
            user=User.BPF,
        ),
        Acts.of(when, place, pages, mask_set=INVALID_CLR, n_calls=pages, user=User.BPF),
    )
