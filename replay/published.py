"""What others measured of a direct map in smaller pieces: results that disagree, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from analyze.words.terminal import wrapped

__all__ = ["RESULTS", "Published", "published_lines"]


@dataclass(frozen=True)
class Published:
    """One published result.

    Attributes:
        who: author, his employer then, year.
        found: what was measured, on what.
        source: message-id, commit or address.
    """

    who: str
    found: str
    source: str

    def to_json(self) -> dict[str, str]:
        return {"who": self.who, "found": self.found, "source": self.source}


RESULTS = (
    Published(
        "Xing Zhengjun (Intel, 2021)",
        "whole map by 1G, 2M or 4K entries, 4 servers, 11 benchmarks, 259 tests: 1G best in 45 %, 2M in about 30 %, 4K in "
        "about 20 %; 4K had the lowest mean on all four; no compelling evidence that 1G must be the only choice",
        "213b4567-46ce-f116-9cdf-bbd0c884eb3c@linux.intel.com",
    ),
    Published(
        "Mike Rapoport (2020)",
        "kernel build with the whole map by 4K entries against 1G: -0.1 to +3.8 % time; by 2M: -3.6 to +6.9 %, without a "
        "variance; no huge advantage of large entries, he concluded",
        "linux-mm, in the discussion of secretmem; the message is not at hand",
    ),
    Published(
        "Mike Rapoport (LSF/MM 2023)",
        "benchmarks with the __GFP_UNMAPPED RFC: no longer convinced that the direct map needs such care",
        "https://lwn.net/Articles/931406/; numbers: https://rppt.io/gfp-unmapped-bench/",
    ),
    Published(
        "Song Liu (Meta, 2022)",
        "web service in production, throughput under a latency bound: bpf_prog_pack on 4K pages +0.5 to +0.7 %, on 2M pages "
        "+0.6 to +0.9 %, which he puts down to less fragmentation of the direct map",
        "719D99A4-3100-49EC-A7D6-6F9CDBA053C4@fb.com",
    ),
    Published(
        "Yang Shi (Ampere, 2025)",
        "arm64, 192 cores, 256 GB, all of the map by blocks instead of 4K entries: about 500 MB more memory free, and faster "
        "benchmarks; a map wholly in 4K, not one that is split here and there",
        "commit a166563e7ec3",
    ),
    Published(
        "Aaron Lu (Intel, 2022)",
        "merging split entries again, posted without a measurement of speed: packing matters more, merging helps with what is "
        "left when it is freed",
        "20220808145649.2261258-1-aaron.lu@intel.com",
    ),
)


def published_lines() -> list[str]:
    """For a terminal."""
    lines = ["Published results on what entries cost, which disagree:"]
    for one in RESULTS:
        lines += wrapped(f"- {one.who}: {one.found}. [{one.source}]", hang=2)
    return lines
