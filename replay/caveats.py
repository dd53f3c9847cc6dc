"""What every replay has to say besides numbers: where they come from, what they leave out, what others measured."""

from __future__ import annotations

from typing import Any

from analyze.losses import Doubt, lost_for
from collect import __version__
from replay.another_run import APART
from replay.stream import Stream

__all__ = ["ANOTHER_RUN", "PUBLISHED", "caveats_of", "provenance_of"]

PUBLISHED = (
    "This says nothing about performance, and published results disagree. Against a benefit: Xing Zhengjun (Intel, "
    "2021) found no compelling evidence for 1G entries only over 259 tests; Rapoport (2020) saw -0.1 to +3.8 % time "
    "for a kernel build with the whole map at 4K, and no longer argued for the cache at LSF/MM 2023 (LWN 931406); "
    "Aaron Lu (2022) posted a merge of split entries without a measurement of speed. For one: Song Liu (Meta, 2022) measured "
    "0.5 to 0.9 % on web servers with bpf_prog_pack, most of it by his account from less fragmentation."
)

ANOTHER_RUN = (
    "The intervals are for the run that was recorded. Where the load runs again, or on another kernel, pages lie elsewhere: allow for "
    f"{APART:.0%} more or fewer frames split. In the validation on real kernels nearly all of the errors were within that (docs/validation.md)."
)


def caveats_of(stream: Stream) -> tuple[list[str], list[str]]:
    """(what the numbers of any policy on this trace do not say, what would narrow their intervals)."""
    trace, requests = stream.trace, stream.requests
    caveats, narrow = [], []
    if stream.n_requests_before:
        caveats.append(
            f"{stream.n_requests_before} allocations made before the start snapshot was complete stay where they are."
        )
    if requests.n_frees_before:
        caveats.append(
            f"{requests.n_frees_before} frees of memory allocated before the recording: it stays as recorded."
        )
    if requests.n_in_old_blocks:
        caveats.append(
            f"{requests.n_in_old_blocks} areas lie in blocks of the ROX cache from before the recording: they stay there."
        )
    if requests.n_pages_unknown:
        caveats.append(
            f"The recorder could not tell the frames of {requests.n_pages_unknown} pages: their changes stay as recorded."
        )
    n_lost = sum(trace.manifest["losses"].values())
    if n_lost:
        caveats.append(f"{n_lost} events were lost in recording: bounds do not cover what they did.")
        narrow.append("A recording without losses (larger rings, a quieter machine).")
    if not trace.manifest["complete"]:
        caveats.append("The recording was cut off and recovered: its last moments may be missing.")
    if trace.manifest["cpu"].get("emulated"):
        caveats.append(
            "Recorded on an emulated machine: its times and rates say nothing of a real one and are not priced."
        )
    caveats.append(ANOTHER_RUN)
    caveats.append(PUBLISHED)
    return caveats, narrow


def provenance_of(stream: Stream) -> dict[str, Any]:
    """Where the numbers come from, for a report: the trace, what is proven of it, and what its kernel had already."""
    manifest = stream.trace.manifest
    requests, proven = stream.requests, stream.verified
    return {
        "trace": stream.trace.path.absolute().name,
        "kernel": str(manifest["kernel"].get("release", "?")),
        "created": manifest["created"],
        "recorded_by": manifest["tool_version"],
        "replayed_by": __version__,
        "seconds": round((manifest["ts_end_ns"] - manifest["ts_start_ns"]) / 1e9, 3),
        "changes": len(stream.rebuilt.changes),
        "steps": len(stream.steps),
        "requests": len(requests),
        "memory_pages": sum(end - first for first, end in manifest["memory"]["ranges"]),
        "cpu": str(manifest["cpu"].get("model", "?")),
        "pages": str(manifest["sampling"].get("pages", "?")),
        "lost": sum(manifest["losses"].values()),
        "complete": manifest["complete"],
        "has_packs": requests.has_packs,
        "has_rox": requests.has_rox,
        "exact": proven.exact,
        "lost_of_map": proven.lost_of_map,
        "lost_of_requests": lost_for(proven.lost, Doubt.REGIONS),
    }
