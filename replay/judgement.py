"""Would a `__GFP_UNMAPPED` cache have been worth it for this trace's direct map? The rule, from the results of a replay.

It is about the map alone: what a frame that stays whole is worth in time is a question of costs (`--costs`), and never answered here.

1. *What was broken*: 2M frames split without a cache (`none`), of which no policy can save more than clairvoyant's lower bound leaves.
2. **Little to gain** where even that is less than `little-share` of the memory.
3. A policy *gains* where it saves `part` of what can be saved at most, and `little-share` of the memory. Each is asked at the
   worst end of its interval and at the best: **yes** and **no** are said only where both ends say so, else it **cannot be told**.
4. Yes comes **at a price** where the cache holds more than `idle-share` of the memory idle, at its peak.
5. It is **no better** than a rival that splits no more frames and holds no more idle, for sure (at its own worst end, against the best).

Frames of a policy that puts entries back count while they are apart: the most of them at once. What the recorded kernel has already
(packs, a ROX cache) is in `none`, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

import numpy as np

from collect.errors import TraceError
from collect.schema import HUGE_FRAME_PAGES
from replay.measures import BASELINE
from replay.policies.eager_merge import SUFFIX
from replay.results import Interval, PolicyResult

__all__ = [
    "BOUND",
    "SUBJECT",
    "Judgement",
    "Rival",
    "Thresholds",
    "Verdict",
    "frames_apart",
    "judge",
    "thresholds",
]

BOUND, SUBJECT = "clairvoyant", "gfp-unmapped"
"""Policies by their part: what nothing can beat, and what is judged."""

_NO_RIVALS = (BOUND, SUBJECT, "ungrouped", "migrate-unmapped")
"""The bound; the cache itself, whatever is set; the recording without its own caches; the cache's predecessor of 2022."""


IN_LINUX = {"prog-pack": "5.18", "rox-cache": "6.15"}
"""Rivals that Linux has, and since when (their docstrings name the commits): what a host can get by a newer kernel."""

_KERNEL_CACHES = {"has_packs": "bpf_prog_pack", "has_rox": "ROX cache"}
"""By key of a result's provenance."""


class Verdict(StrEnum):
    """The answer; each is a key of `--json`."""

    NOTHING = "nothing was split"
    LITTLE = "little to gain"
    NO = "no"
    NO_BETTER = "no better than a rival"
    YES = "yes"
    AT_A_PRICE = "yes, at a price"
    UNKNOWN = "cannot be told"
    NOT_ASKED = "not asked"


@dataclass(frozen=True)
class Thresholds:
    """Where the rule draws its lines.

    Attributes:
        little_share: share of the memory below which saved frames are little. Rapoport (2020) saw at most 3.8 % more time for a
            kernel build with the *whole* map in 4K entries; if harm goes with the share, a hundredth of the map is 0.04 %, less than
            any published measurement could tell from nothing. The assumption is ours: a hot frame weighs more than a cold one.
        part: share of what could be saved at most that a policy must save. A convention: the greater half.
        idle_share: share of the memory that may lie idle in the cache. A convention: what a fleet would miss on every host.
        rising: share of all splits that, if it falls into the last fifth of the recording, says that the load was still
            breaking frames when it ended; a fifth would be an even pace.
    """

    little_share: float = 0.01
    part: float = 0.5
    idle_share: float = 0.01
    rising: float = 0.1


def thresholds(given: Sequence[str]) -> Thresholds:
    """From NAME=SHARE on the command line, shares from 0 to 1. Raises TraceError."""
    names = {f.name.replace("_", "-"): f.name for f in fields(Thresholds)}
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if name not in names or not 0.0 <= share <= 1.0:
            raise TraceError(
                f"--threshold {text[:60]!r}: give one of {', '.join(names)}, as NAME=SHARE, a share from 0 to 1"
            )
        found[names[name]] = share
    return replace(Thresholds(), **found)


@dataclass(frozen=True)
class Rival:
    """The rival that leaves fewest frames apart at its worst end, then holds least idle.

    Attributes:
        frames, idle: as of the cache.
        as_good: it surely splits no more frames than the cache and holds no more idle.
    """

    policy: str
    frames: Interval
    idle: Interval
    as_good: bool


@dataclass(frozen=True)
class Judgement:
    """The answer and what it stands on; frames are of 2 MiB, pages of 4 KiB.

    Attributes:
        verdict: see the module.
        policy: what was judged, as it was replayed.
        memory_pages: of the machine; 0 where it is not known.
        base: frames split as recorded. base_1g: 1G entries.
        by_user: the same frames by who split them first, most first.
        frames, frames_1g, idle, saved: under the cache: frames apart, 1G entries, pages idle at most, frames saved.
        bound: frames that no policy can save, for sure, and that one that knows the future does with; None without `clairvoyant`.
        most: frames that could be saved at most.
        rival: None where none was replayed.
        in_linux: the best of those rivals that Linux has (`IN_LINUX`), where that is another and would have changed anything.
        emulated: its CPUs were, so that times say nothing.
        kernel_caches: what the recorded kernel has of the kind already.
        firm, doubts: what makes it sure, and what does not, a clause each.
        narrow: what would narrow the interval that leaves it open; empty where nothing is open.
    """

    verdict: Verdict
    policy: str
    seconds: float
    memory_pages: int
    base: Interval
    base_1g: Interval
    by_user: Mapping[str, Interval]
    frames: Interval | None
    frames_1g: Interval | None
    idle: Interval | None
    saved: Interval | None
    bound: Interval | None
    most: float
    rival: Rival | None
    in_linux: Rival | None
    emulated: bool
    kernel_caches: Sequence[str]
    firm: Sequence[str]
    doubts: Sequence[str]
    narrow: Sequence[str] = field(default_factory=list)
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def sure(self) -> bool:
        """Nothing that is known speaks against the counts."""
        return not self.doubts

    def share(self, frames: float) -> float | None:
        """Share of the memory that so many frames are."""
        return frames * HUGE_FRAME_PAGES / self.memory_pages if self.memory_pages else None

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in found.items():
            if isinstance(value, Interval):
                found[name] = value.to_json()
        found["verdict"] = str(self.verdict)
        found["by_user"] = {user: n.to_json() for user, n in self.by_user.items()}
        found["thresholds"] = {f.name: getattr(self.thresholds, f.name) for f in fields(Thresholds)}
        found["sure"] = self.sure
        for name in ("firm", "doubts", "narrow"):
            found[name] = list(found[name])
        for name, rival in (("rival", self.rival), ("in_linux", self.in_linux)):
            if rival is None:
                continue
            found[name] = {
                "policy": rival.policy,
                "frames": rival.frames.to_json(),
                "idle": rival.idle.to_json(),
                "as_good": rival.as_good,
            }
        return found


def frames_apart(result: PolicyResult) -> Interval:
    """2M frames that a policy leaves in 4K entries: all it ever split, or, where it puts them back, the most of them at once."""
    return result.split_2m_live_peak if result.policy.partition(SUFFIX)[1] else result.split_2m


def judge(results: Sequence[PolicyResult], limits: Thresholds | None = None) -> Judgement | None:
    """The answer for the results of one trace; None where `none` is not among them, for then there is nothing to compare with."""
    limits = limits or Thresholds()
    base = next((r for r in results if r.policy == BASELINE), None)
    if base is None:
        return None
    subject = next((r for r in results if r.policy == SUBJECT), None)
    subject = subject or next((r for r in results if _bare(r) == SUBJECT), None)
    bound = next((r for r in results if _bare(r) == BOUND), None)
    memory = int(base.provenance.get("memory_pages", 0))
    most = base.split_2m.hi - (bound.split_2m.lo if bound is not None else 0.0)
    frames = frames_apart(subject) if subject is not None else None
    saved = Interval(base.split_2m.lo - frames.hi, base.split_2m.hi - frames.lo) if frames is not None else None
    rival = in_linux = None
    if subject is not None:
        rival = _best_rival([r for r in results if _bare(r) not in _NO_RIVALS and r.policy != BASELINE], subject)
        in_linux = _best_rival([r for r in results if r.policy in IN_LINUX and not r.identity], subject)
        if rival is not None and in_linux is not None and in_linux.policy == rival.policy:
            in_linux = None
    firm, doubts = _sureness(base, limits)
    verdict = _verdict(base, subject, saved, most, memory, rival, limits)
    return Judgement(
        verdict=verdict,
        policy=subject.policy if subject is not None else SUBJECT,
        seconds=float(base.provenance.get("seconds", 0.0)),
        memory_pages=memory,
        base=base.split_2m,
        base_1g=base.split_1g,
        by_user=dict(sorted(base.split_2m_by_user.items(), key=lambda item: (-item[1].hi, item[0]))),
        frames=frames,
        frames_1g=subject.split_1g if subject is not None else None,
        idle=subject.idle_pages_peak if subject is not None else None,
        saved=saved,
        bound=bound.split_2m if bound is not None else None,
        most=most,
        rival=rival,
        in_linux=in_linux,
        emulated=base.emulated,
        kernel_caches=[name for key, name in _KERNEL_CACHES.items() if base.provenance.get(key)],
        firm=firm,
        doubts=doubts,
        narrow=subject.narrow if subject is not None and verdict == Verdict.UNKNOWN else [],
        thresholds=limits,
    )


def _bare(result: PolicyResult) -> str:
    """Name without settings and without `+merge`."""
    return result.policy.partition(SUFFIX)[0].partition(":")[0]


def _verdict(
    base: PolicyResult,
    subject: PolicyResult | None,
    saved: Interval | None,
    most: float,
    memory: int,
    rival: Rival | None,
    limits: Thresholds,
) -> Verdict:
    if base.split_2m.hi == 0:
        return Verdict.NOTHING
    if most * HUGE_FRAME_PAGES < limits.little_share * memory:
        return Verdict.LITTLE
    if subject is None or saved is None:
        return Verdict.NOT_ASKED

    def gains(frames: float) -> bool:
        return frames > 0 and frames >= limits.part * most and frames * HUGE_FRAME_PAGES >= limits.little_share * memory

    if gains(saved.lo) != gains(saved.hi):
        return Verdict.UNKNOWN
    if not gains(saved.lo):
        return Verdict.NO
    if rival is not None and rival.as_good:
        return Verdict.NO_BETTER
    return Verdict.AT_A_PRICE if memory and subject.idle_pages_peak.hi > limits.idle_share * memory else Verdict.YES


def _best_rival(rivals: Sequence[PolicyResult], subject: PolicyResult) -> Rival | None:
    if not rivals:
        return None
    best = min(rivals, key=lambda r: (frames_apart(r).hi, r.idle_pages_peak.hi, r.policy))
    frames, idle = frames_apart(best), best.idle_pages_peak
    as_good = frames.hi <= frames_apart(subject).lo and idle.hi <= subject.idle_pages_peak.lo
    return Rival(best.policy, frames, idle, as_good)


def _sureness(base: PolicyResult, limits: Thresholds) -> tuple[list[str], list[str]]:
    """What makes the counts sure, what puts them in doubt; from the trace, whatever the policies."""
    firm, doubts = [], []
    known = base.provenance
    exact, of_map, of_requests = (known.get(key) for key in ("exact", "lost_of_map", "lost_of_requests"))
    if exact:
        firm.append("the trace is exact")
    elif of_map:
        doubts.append(f"{of_map:,} changes of the map were lost, so all counts are lower bounds")
    else:
        doubts.append(
            "the trace is not proven exact" if exact is False else "it was not checked whether the trace is exact"
        )
    if of_requests:
        doubts.append(f"{of_requests:,} events were lost that tell who asked for which memory")
    if base.emulated:
        firm.append("CPUs were emulated: counts hold, times do not")
    if _still_rising(base, limits):
        doubts.append("frames were still being split when the recording ended, so a longer one may answer otherwise")
    return firm, doubts


def _still_rising(base: PolicyResult, limits: Thresholds) -> bool:
    """Whether many frames were split in the last fifth of the time."""
    t, split = base.series.t_s, base.series.split_hi
    before = split[int(np.searchsorted(t, 0.8 * t[-1], side="right")) - 1]
    return bool(split[-1] > 0 and split[-1] - before >= limits.rising * split[-1])
