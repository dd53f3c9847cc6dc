"""What the analyzer's benchmark times, each in a process of its own: `python3 -m tests.bench.answer WHAT DIR`.

Prints one object of JSON: seconds (since the process began), events, and a few numbers of the answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["TASKS"]

DECADES = "floor(log10(greatest(life, 1)))"


def report(trace: Path) -> dict[str, Any]:
    """All of `report` but the drawing: levels, verification, attribution, page events, free blocks, health."""
    from analyze.analysis import analyse_trace
    from analyze.counter_series import CounterSeries
    from analyze.health import health
    from analyze.pages.free_blocks import free_blocks
    from collect.trace import open_trace

    opened = open_trace(trace)
    analysis = analyse_trace(opened)
    found = analysis.pages
    assert found is not None
    health(opened, analysis).to_json()
    said = found.to_json()
    assert free_blocks(CounterSeries(opened))
    return {
        "events": found.n_events,
        "changes": len(analysis.rebuilt.changes),
        "freed": sum(r["freed"] for r in said["lifetimes"]),
    }


def pages(trace: Path) -> dict[str, Any]:
    from analyze.pages.events import page_events
    from collect.trace import open_trace

    found = page_events(open_trace(trace))
    return {"events": found.n_events, "freed": int(found.lives.sum()), "groups": len(found.classes)}


def rebuilt(trace: Path) -> dict[str, Any]:
    from analyze.reconstruct import rebuild
    from collect.trace import open_trace

    opened = open_trace(trace)
    began = time.monotonic()
    found = rebuild(opened)
    return {"events": len(found.changes), "splits": len(found.splits), "of_it_rebuild": time.monotonic() - began}


def state(trace: Path) -> dict[str, Any]:
    from analyze.playback import Playback, load_course
    from collect.trace import open_trace

    playback = Playback(load_course(open_trace(trace)))
    playback.to_end()
    return {"events": len(playback.course.changes), "counts": playback.state.counts()}


def verified(trace: Path) -> dict[str, Any]:
    from analyze.verify import verify
    from collect.trace import open_trace

    found = verify(open_trace(trace))
    assert found.difference is not None
    return {"events": found.n_changes, "pages": found.difference.pages}


def duckdb_groups(trace: Path) -> dict[str, Any]:
    import duckdb

    files = str(trace / "pages-*.parquet")
    rows = duckdb.sql(
        f"SELECT event, \"order\", gfp, migratetype, count(*) AS n FROM read_parquet('{files}') GROUP BY ALL"
    ).fetchall()
    return {"events": sum(row[-1] for row in rows), "groups": len(rows)}


def duckdb_lifetimes(trace: Path) -> dict[str, Any]:
    """Of single pages alone: from each allocation to the next event of that page, if it is a free."""
    import duckdb

    files = str(trace / "pages-*.parquet")
    rows = duckdb.sql(
        f"SELECT {DECADES} AS decade, count(*) FROM (SELECT event, lead(event) OVER w AS following, lead(ts_ns) OVER w - ts_ns AS life "
        f"FROM read_parquet('{files}') WINDOW w AS (PARTITION BY pfn ORDER BY ts_ns)) WHERE event <> 1 AND following = 1 GROUP BY ALL"
    ).fetchall()
    return {"freed": sum(row[-1] for row in rows)}


def polars_groups(trace: Path) -> dict[str, Any]:
    import polars as pl

    rows = (
        pl.scan_parquet(trace / "pages-*.parquet")
        .group_by("event", "order", "gfp", "migratetype")
        .len()
        .collect(engine="streaming")
    )
    return {"events": int(rows["len"].sum()), "groups": len(rows)}


def polars_lifetimes(trace: Path) -> dict[str, Any]:
    """As `duckdb_lifetimes`."""
    import polars as pl

    after = pl.scan_parquet(trace / "pages-*.parquet").select("pfn", "ts_ns", "event").sort("pfn", "ts_ns")
    same = pl.col("pfn") == pl.col("pfn").shift(-1)
    freed = (pl.col("event") != 1) & same & (pl.col("event").shift(-1) == 1)
    life = (pl.col("ts_ns").shift(-1) - pl.col("ts_ns")).cast(pl.Float64).clip(1).log10().floor()
    rows = after.select(life.filter(freed).alias("decade")).group_by("decade").len().collect(engine="streaming")
    return {"freed": int(rows["len"].sum())}


TASKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    task.__name__: task
    for task in (
        report,
        pages,
        rebuilt,
        state,
        verified,
        duckdb_groups,
        duckdb_lifetimes,
        polars_groups,
        polars_lifetimes,
    )
}


if __name__ == "__main__":
    print(json.dumps(TASKS[sys.argv[1]](Path(sys.argv[2]))))
