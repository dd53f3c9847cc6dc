"""What `make bench-replay` found, as Markdown: what docs/replay-speed.md holds."""

from __future__ import annotations

from typing import Any

from tests.bench.markdown import REACHED, table

__all__ = ["markdown"]

GOAL_PER_S = 50e6
GOAL_RATIO = 2.5


def markdown(found: dict[str, Any]) -> str:
    """The whole result, as `tests.bench.replayer.measure` puts it together."""
    host = found["machine"]
    parts = [
        "# How fast policies are replayed",
        f"Written by `{found['command']}` on {host['date'][:10]}, commit {host['commit']}; not edited by hand.",
        f"{host['cpu']}, {host['n_cpus']} CPUs (one used), {host['memory_gib']} GiB, hypervisor {host['hypervisor']}, Linux "
        f"{host['kernel']}; {found['versions']}.{' **Emulated: its times mean nothing.**' if host['emulated'] else ''}",
        "## Goals",
        _goals(found),
        f"## Every policy, on {found['trace']} repeated to {found['requests']:,} requests and {found['changes']:,} changes",
        table(
            ["policy", "ways", "acted on", "placing, s", "walking, s", "M/s", "M/CPU s"],
            [
                [
                    f"`{name}`",
                    str(row["ways"]),
                    f"{row['acted_on']:,}",
                    f"{row['placing_s']:.3f}",
                    f"{row['walking_s']:.3f}",
                    f"{row['events_per_s'] / 1e6:.1f}",
                    f"{row['events_per_cpu_s'] / 1e6:.1f}",
                ]
                for name, row in found["policies"].items()
            ],
        ),
    ]
    if "libcachesim" in found:
        other = found["libcachesim"]
        parts.append(
            table(
                ["beside it", "requests", "M/s", "M/CPU s"],
                [
                    [
                        f"libCacheSim {other['version']} {name}",
                        f"{other['requests']:,}",
                        f"{other[name]['requests_per_s'] / 1e6:.1f}",
                        f"{other[name]['requests_per_cpu_s'] / 1e6:.1f}",
                    ]
                    for name in found["others"]
                ],
            )
        )
    return "\n\n".join([*parts, NOTES.format(rounds=found["rounds"])]) + "\n"


def _all_per_s(found: dict[str, Any]) -> float:
    """Events a second of all policies together, by the clock."""
    rows = found["policies"].values()
    return sum(row["acted_on"] for row in rows) / sum(row["placing_s"] + row["walking_s"] for row in rows)  # type: ignore[no-any-return]


def _goals(found: dict[str, Any]) -> str:
    rates = {name: row["events_per_s"] for name, row in found["policies"].items()}
    slow = [f"`{name}` {rate / 1e6:.0f}" for name, rate in rates.items() if rate < GOAL_PER_S]
    ten = found["ten_together"]
    together = _all_per_s(found)
    rows = [
        [
            f"{GOAL_PER_S / 1e6:.0f} M events a second that a policy acts on",
            f"all together {together / 1e6:.1f} M; below it: {', '.join(slow) or 'none'}",
            "yes" if not slow else f"by {len(rates) - len(slow)} of {len(rates)}",
        ],
        [
            "ten policies within three times decoding and one more",
            f"{ten['with_ten_s']:.2f} s of {ten['allowed_s']:.2f} s",
            REACHED[ten["with_ten_s"] <= ten["allowed_s"]],
        ],
    ]
    if "libcachesim" in found:
        best = max(found["libcachesim"][name]["requests_per_s"] for name in found["others"])
        rows.append(
            [
                f"{GOAL_RATIO:g} times as fast as libCacheSim's faster one",
                f"all together {together / best:.1f} times, the slowest policy {min(rates.values()) / best:.1f}",
                REACHED[together >= GOAL_RATIO * best],
            ]
        )
    return table(["goal", "measured", "reached"], rows)


NOTES = """\
* Events are requests and their frees, a page each, and changes that reach the page tables of the policy's map; what a policy leaves as
  recorded, or does not do, is not counted. Median of {rounds} rounds, compiled code at hand. Placing is where the policy gives each
  request its pages; walking is every change on the map, with the books. Decoding the trace is not in it.
* M/CPU s: by CPU time of the process, which others on the machine disturb less than the clock.
* libCacheSim's FIFO and LRU run in its own C loop, one thread, over the same stream as requests for a page: one where a page is
  allocated, freed or changed; its cache holds half of the pages."""
