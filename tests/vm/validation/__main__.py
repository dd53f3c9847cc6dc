"""Records, predicts, measures and tells: `make validate`, or `python -m tests.vm.validation --list`."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from replay.results import PolicyResult
from replay.run import run_policies
from tests.vm import cache
from tests.vm.errors import LabError, leave, status_of
from tests.vm.record import LAB_JSON
from tests.vm.validation import books, published, table
from tests.vm.validation.cells import RFC, ROOT, RUNS, Recorded, Run

STEPS = ("sources", "predict", "measure", "rfc", "published", "table")


def record(recorded: Recorded) -> None:
    """Record it, unless it is there."""
    if recorded.folder.exists():
        return
    cache.say(f"recording {recorded.name}")
    status = status_of(recorded.argv, cwd=ROOT)
    if status != 0:
        raise LabError(f"{recorded.name}: the recording left with status {status}. Try again.")


def numbers(result: PolicyResult) -> dict[str, Any]:
    """What is kept of a prediction."""
    return {
        "policy": result.policy,
        "split_2m": result.split_2m.to_json(),
        "split_1g": result.split_1g.to_json(),
        "page_table_pages_end": result.page_table_pages_end.to_json(),
        "cpa_calls": result.cpa_calls.to_json(),
        "refills": {str(order): n.to_json() for order, n in result.refills.items()},
        "refill_failures": result.refill_failures.to_json(),
        "pages_unmapped": result.pages_unmapped.to_json(),
        "idle_pages_peak": result.idle_pages_peak.to_json(),
        "idle_pages_end": result.idle_pages_end.to_json(),
    }


def predict(run: Run) -> None:
    """Replay the source and write down what the target will do, unless that is written."""
    if run.name in books.read(books.PREDICTED):
        return
    record(run.source)
    results = run_policies(run.source.folder, ["none", run.policy])  # one, where the policy is none
    none, result = results[0], results[-1]
    line = {
        "name": run.name,
        "recorded": int(none.split_2m.lo),
        "by": books.head(),
        "date": books.now(),
        **numbers(result),
        **table.foretold(result),
    }
    books.add(books.PREDICTED, line)
    cache.say(
        f"{run.name}: predicted {line['another_run']}, most likely {line['expected']}; recorded {line['recorded']}"
    )


def measure(run: Run) -> None:
    """Record the target, count, and let the trace go; a target that several runs share is recorded once."""
    if run.target.name in books.read(books.MEASURED):
        return
    line = books.read(books.PREDICTED).get(run.name)
    if line is None:
        raise LabError(
            f"{run.name}: not predicted yet, so there is nothing to measure against. Run --steps predict first."
        )
    record(run.target)
    none = run_policies(run.target.folder, ["none"])[0]
    lab = json.loads((run.target.folder / LAB_JSON).read_text(encoding="utf-8"))
    books.add(
        books.MEASURED,
        {
            "name": run.target.name,
            "kernel": none.provenance["kernel"],
            "exact": none.provenance["exact"],
            "split_2m": int(none.split_2m.lo),
            "counted_by_kernel": lab["load"]["statistics"]["direct_map_change"].get("direct_map_level2_splits"),
            "page_table_pages_end": int(none.page_table_pages_end.lo),
            "cpa_calls": int(none.cpa_calls.lo),
            "predicted_in": books.committed(books.PREDICTED, line),
            "date": none.provenance["created"],
        },
    )
    cache.say(f"{run.name}: predicted {line['another_run']}, most likely {line['expected']}; measured {none.split_2m}")
    shutil.rmtree(run.target.folder)


def foretell_rfc(recorded: Recorded) -> None:
    """What the RFC's cache would do to a load on 6.1."""
    if recorded.name in books.read(books.RFC_PREDICTED):
        return
    record(recorded)
    none, result = run_policies(recorded.folder, ["none", "gfp-unmapped"])
    line = {"name": recorded.name, "recorded": int(none.split_2m.lo), "by": books.head(), "date": books.now()}
    books.add(books.RFC_PREDICTED, line | numbers(result))


def listing(runs: Sequence[Run]) -> None:
    """What is known of each run."""
    predicted, measured = books.read(books.PREDICTED), books.read(books.MEASURED)
    for run in runs:
        foretold, found = predicted.get(run.name), measured.get(run.target.name)
        words = f"predicted {foretold['another_run']}" if foretold else "not predicted"
        print(
            f"{run.name:34} {run.policy:10} {words}, {'measured ' + str(found['split_2m']) if found else 'not measured'}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing of the chosen steps and runs."""
    parser = argparse.ArgumentParser(prog="make validate", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", default="*", metavar="PATTERNS", help="only these, as 'code-*-fresh-11 secret-*'")
    parser.add_argument("--steps", default=",".join(STEPS), help="of the work: %(default)s")
    parser.add_argument("--list", action="store_true", help="print the runs and what is known of each; do nothing")
    options = parser.parse_args(arguments)
    steps = options.steps.split(",")
    if unknown := set(steps) - set(STEPS):
        raise LabError(f"There is no step {', '.join(sorted(unknown))}; the steps are {', '.join(STEPS)}.")

    def wanted(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in options.runs.split())

    runs = [run for run in RUNS if wanted(run.name)]
    rfc = [recorded for recorded in RFC if wanted(f"rfc-{recorded.name}")]
    experiments = [cell for cell in published.CELLS if wanted(cell.name)]
    if not runs and not rfc and not experiments:
        raise LabError(f"No run is named {options.runs}. List them: python -m tests.vm.validation --list")
    if options.list:
        listing(runs)
        return 0
    work: list[tuple[str, Callable[[Any], None], Sequence[Any]]] = [
        ("sources", record, [run.source for run in runs]),
        ("predict", predict, runs),
        ("measure", measure, runs),
        ("rfc", foretell_rfc, rfc),
        ("published", published.run, experiments),
    ]
    for step, do, things in work:
        for thing in things if step in steps else ():
            do(thing)
    if "table" in steps:
        table.write(ROOT)
    return 0


if __name__ == "__main__":
    leave(main)
