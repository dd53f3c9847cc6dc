"""`bpf_prog_pack`: many BPF images in one area that is made read-only once."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from collect.schema import HUGE_FRAME_PAGES, Pte
from replay.next_pages import NextPages
from replay.placement import GONE, INVALID_CLR, SYMBOLIC, Acts, Host, Placement, Served, as_recorded
from replay.policies.base import VIEW, Outcome, Parameter, Policy
from replay.prog_packs import CHUNK_BYTES, PackRun, chunks_of, run_packs
from replay.requests import Requests
from replay.single_pages import SinglePages
from replay.users import User

__all__ = ["ProgPack"]

Int64 = npt.NDArray[np.int64]

PAGE_BYTES = 4096
_RW = int(Pte.RW)

RECORDER_PROGRAM_BYTES = 1200
"""What a program of the recorder takes in a pack on average. From when the first new pack was made in the samples 6.1-churn and
7.2-churn: their 28 and 32 programs, and whatever else was in the pack from before, took 4 to 45 and 27 to 50 KiB."""

_MAX_ACTS = 1 << 17
"""A pack is changed page by page, unless all packs together have more pages than this (30 MB): then in fewer pieces."""


class ProgPack(Policy):
    """BPF images share packs of 2 MiB times nodes; everything else stays as recorded.

    Source: Song Liu, commit 57631054fae6 (Linux 5.18), kernel/bpf/core.c; pack size since d6170e4aaf86.

    Mechanism: see `replay.prog_packs`. A new pack is made read-only and executable once, page by page in the direct
    map because vmalloc maps it by 4K entries; images written into it later change no mapping. An emptied pack is
    freed, and vfree resets its pages one by one. A larger image keeps its own pages, as recorded.

    What the trace does not tell:

    * How full the pack from before the recording is. There is one, for the recorder's own programs lie in it. Expected, and
      at one end: nothing else does (`old-pack-used` sets it); at the other: it is full.
    * Which 512 x nodes single pages a new pack gets. Expected: as many frames as those that the recorded kernel handed out in
      single pages next, see `replay.single_pages`. The ends: the densest and the most scattered such pages of about the
      same time. The first of these frames, in use at that moment, is a real one, and counted once with whoever else splits
      it. The others the pack takes whole, and others then lie elsewhere: they are counted on top. (Of the 34 frames of the six
      packs in the sample 6.1-churn, 10 were split by somebody else too.) In the view as asked, packs lie where the recorded
      kernel's own lay.

    Not modelled: that others then get other pages; programs that come to need a pack sooner because of alignment by the JIT; and
    trampolines, which older kernels allocate as whole pages and the pack takes in later versions.
    """

    name = "prog-pack"
    title = "bpf_prog_pack (Linux 5.18)"
    parameters: ClassVar[dict[str, Parameter]] = {
        "old-pack": Parameter(
            "maybe",
            "whether a pack from before the recording has room for its images: yes, no, or nobody knows",
            ("maybe", "yes", "no"),
        ),
        "old-pack-used": Parameter(
            0,
            "what was in that pack before; 0: 1,200 bytes for each program of the recorder, as in the sample recordings of "
            "6.1 and 7.2",
            highest=1 << 20,
            unit="KiB",
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
        if requests.has_packs and not self.as_asked:
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The recorded kernel already has bpf_prog_pack."]
            )
        if not requests.in_jit.any():
            return Outcome(
                [as_recorded(requests)], identity=True, caveats=["The trace holds no BPF image: nothing to pack."]
            )
        ways = {"yes": (True, True, True), "no": (False, False, False), "maybe": (True, True, False)}[
            self.word("old-pack")
        ]
        runs = {roomy: self._run(requests, host, roomy=roomy) for roomy in set(ways)}
        singles = self._single_pages(requests, host, list(runs.values()))
        keys = [  # where no pack is made, there is nothing to spread
            (roomy, spread if (runs[roomy].made_event >= 0).any() else 0)
            for roomy, spread in zip(ways, (-1, 0, 1), strict=True)
        ]
        different = list(dict.fromkeys(keys))
        placements = [
            self._placed(
                requests,
                host,
                runs[roomy],
                self._places(requests, host, singles, runs[roomy], spread),
                apart=singles is not None,
            )
            for roomy, spread in different
        ]
        n_packs = [int(np.count_nonzero(run.made_event >= 0)) for _, run in sorted(runs.items(), reverse=True)]
        return Outcome(
            placements,
            expected=different.index(keys[1]),
            caveats=self._caveats(host, n_packs, singles),
            narrow=[_WITH_PACKS] if isinstance(singles, NextPages) else [_ALL_PAGES, _WITH_PACKS],
        )

    def _pages(self, host: Host) -> int:
        """Of a pack."""
        return self.number("pages") * host.n_nodes

    def _old_used_kib(self, host: Host) -> int:
        """What is in a pack from before that has room."""
        return self.number("old-pack-used") or -(-host.recorder_programs * RECORDER_PROGRAM_BYTES // 1024)

    def _run(self, requests: Requests, host: Host, *, roomy: bool) -> PackRun:
        """`roomy`: a pack from before is there, with what `_old_used_kib` says in it."""
        event_request, is_free, _ = requests.events(requests.in_jit)
        used = self._old_used_kib(host) * 1024 // CHUNK_BYTES
        return run_packs(
            event_request,
            is_free,
            chunks_of(requests.asked_bytes),
            self._pages(host) * PAGE_BYTES // CHUNK_BYTES,
            old_used=used if roomy else None,
        )

    def _single_pages(self, requests: Requests, host: Host, runs: list[PackRun]) -> SinglePages | NextPages | None:
        """Pages that the recorded kernel handed out one by one: to anybody, where the trace tells, else to its requests."""
        if host.next_pages is not None:
            _, _, event_ns = requests.events(requests.in_jit)
            made_ns = [event_ns[run.made_event[run.made_event >= 0]] for run in runs]
            found = NextPages.of(host.next_pages, np.concatenate(made_ns), self._pages(host))
            if found is not None:
                return found
        owner = requests.owner
        single = (requests.order == 0)[owner]
        known = SinglePages.of(requests.begin_ns[owner[single]], requests.pfn[single], self._pages(host))
        return known if len(known) else None

    def _places(
        self, requests: Requests, host: Host, singles: SinglePages | NextPages | None, run: PackRun, spread: int
    ) -> Int64:
        """[packs made, pieces] place of each piece of each pack: of as many pages as fit a pack of so many pieces.

        `spread`: -1 as dense, 1 as scattered as single pages were around that moment; 0 those that came next.
        """
        _, _, event_ns = requests.events(requests.in_jit)
        made_ns = event_ns[run.made_event[run.made_event >= 0]]
        n_packs, pages = len(made_ns), self._pages(host)
        pieces = max(host.n_nodes, min(pages, _MAX_ACTS // max(1, n_packs)))
        if singles is not None:
            places = _first_and_new(singles.chosen(made_ns, spread, pieces))
        else:  # nothing is known: whole blocks, or every page in a frame of its own
            n_blocks = host.n_nodes if spread < 0 else pieces
            blocks = np.arange(n_packs)[:, None] * n_blocks + np.arange(n_blocks)
            places = SYMBOLIC + blocks % host.n_frames * HUGE_FRAME_PAGES
        for pack in range(
            min(n_packs, len(requests.pack_first) - 1)
        ):  # the recorded kernel's own, in the view as asked
            own = requests.pack_pfn[requests.pack_first[pack] : requests.pack_first[pack + 1]]
            if len(own) == places.shape[1] and (own >= 0).all():
                places[pack] = own
        return places

    def _placed(self, requests: Requests, host: Host, run: PackRun, places: Int64, *, apart: bool) -> Placement:
        """One way it may have gone. `apart`: see `Placement`."""
        _, _, event_ns = requests.events(requests.in_jit)
        in_pack = run.pack >= 0
        pages = self._pages(host)
        n_blocks = max(0, (int(places.max(initial=0)) - SYMBOLIC) // HUGE_FRAME_PAGES + 1)
        return Placement(
            dest=np.where(in_pack[requests.owner], GONE, requests.pfn),
            swallowed=in_pack,
            n_blocks=n_blocks,
            apart=apart,
            in_pieces=np.ones(n_blocks, np.bool_),
            acts=_acts(run, event_ns, pages, places),
            idle_ns=event_ns,
            idle_pages=run.n_live * pages - -(-run.used_chunks * CHUNK_BYTES // PAGE_BYTES),
            state=np.where(in_pack, Served.SERVED, Served.AS_RECORDED).astype(np.uint8),
        )

    def _caveats(self, host: Host, n_packs: list[int], singles: SinglePages | NextPages | None) -> list[str]:
        """`n_packs`: new ones, with a pack from before that has room (if that may be), and without."""
        old = self.word("old-pack")
        used = self._old_used_kib(host)
        texts = {
            "yes": f"A pack from before the recording has {used} KiB in it; {n_packs[0]} new ones are made.",
            "no": f"No pack from before the recording has room; {n_packs[-1]} new ones are made.",
            "maybe": f"Where packs are used, one was there before the recording: the recorder's own programs live in it. "
            f"Expected, and lower bound: nothing else, {used} KiB; {n_packs[0]} new packs. Upper bound: it is full; "
            f"{n_packs[-1]} new packs.",
        }
        pages = self._pages(host)
        never = f"The {pages} single pages of a new pack were never allocated by the recorded kernel. Expected: "
        if isinstance(singles, NextPages):
            where = f"{never}those that lay free then and that anybody got next; the ends: the densest and the most scattered of "
            where += f"the {pages * 4:,} that followed."
        elif singles is not None:
            where = (
                f"{never}the frames of the {singles.window:,} special pages that it handed out next in single pages, which "
                f"stand for {pages} taken at once by anybody (calibrated on one recording of 6.1); the ends: the densest and "
                "the most scattered ones of about that time."
            )
        else:
            where = f"Where the {pages} single pages of a new pack would lie nobody knows: together, or each in a frame of its own."
        return [texts[old], where]


_ALL_PAGES = "The same load recorded with --pages all tells which single pages the kernel handed out next."
_WITH_PACKS = "The same load recorded on a kernel with packs tells how full they are and where their pages lie."


def _first_and_new(pfn: Int64) -> Int64:
    """[packs, pieces] places: what lies in the first page's frame stays there, which is in use at that moment.

    The other frames stand for memory that a pack takes before anybody else can, so that theirs lies elsewhere: blocks, the same
    one for the same frame.
    """
    frames = pfn // HUGE_FRAME_PAGES
    new = frames != frames[:, :1]
    _, block = np.unique(frames[new], return_inverse=True)
    places = pfn.copy()
    places[new] = SYMBOLIC + block.reshape(-1) * HUGE_FRAME_PAGES + pfn[new] % HUGE_FRAME_PAGES
    return places


def _acts(run: PackRun, event_ns: Int64, pack_pages: int, places: Int64) -> Acts:
    """Making each pack read-only (and executable, which the direct map never sees), and its reset when it goes.

    `places`: [packs, pieces]; the pages of a piece lie side by side in one frame.
    """
    made_event, gone_event = (events[run.made_event >= 0] for events in (run.made_event, run.gone_event))
    n_packs, pieces = places.shape
    pack = np.repeat(np.arange(n_packs), pieces)
    part = np.tile(np.arange(pieces), n_packs)
    pages = np.minimum(pack_pages // pieces + (part < pack_pages % pieces), HUGE_FRAME_PAGES)
    place = places.reshape(-1)
    place = np.minimum(place, (place // HUGE_FRAME_PAGES + 1) * HUGE_FRAME_PAGES - pages)
    head = part == 0  # calls and flushes are counted once a pack
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
