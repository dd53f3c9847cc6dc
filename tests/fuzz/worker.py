"""One process of the fuzzer: `python -m tests.fuzz.worker TARGET DIRECTORY SECONDS [libFuzzer's options]`, started by `tests.fuzz run`, for
that much CPU time.

In DIRECTORY: `corpus/` grows; `findings/` gets an input and what it led to, once per cause; `state.json` is what was
done; `current` is the input in work, for whoever finds this process dead.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
import types
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "agg")

import atheris
from atheris.instrument_bytecode import patch_code

from tests.fuzz.answers import MOST_SECONDS
from tests.fuzz.inputs import FOCUS, Runner, first_inputs, kept, name_of, signature
from tests.fuzz.mutate import Mutator

MOST_RUNS = 20_000
MOST_RESIDENT = 600 << 20
"""Of one process, between inputs: what libraries keep or leak does not add up to a finding."""


def main(name: str, directory: Path, seconds: float, options: list[str]) -> None:
    corpus, findings = directory / "corpus", directory / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    runner = Runner(name)
    for data in first_inputs(name):
        runner_quietly(runner, data)  # compiles, imports
    instrument()
    for data in [*first_inputs(name), *kept(name)]:
        (corpus / name_of(data)).write_bytes(data)
    state = {"runs": 0, "findings": {}}
    current = directory / "current"

    def one(data: bytes) -> int:
        current.write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, 2 * MOST_SECONDS)  # the default action: the end of us
        try:
            runner(data)
        except Exception as error:
            cause = signature(error)
            known = state["findings"]
            known[cause] = known.get(cause, 0) + 1
            file = findings / f"{name_of(cause.encode())}.json"
            if known[cause] == 1 and not file.exists():
                text = "".join(traceback.format_exception(error))
                file.write_text(
                    json.dumps(
                        {"target": name, "cause": cause, "input": data.decode("utf-8", "replace"), "traceback": text},
                        indent=1,
                    )
                )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        state["runs"] += 1
        done = state["runs"] >= MOST_RUNS or time.process_time() > seconds or resident() > MOST_RESIDENT
        if state["runs"] % 20 == 0 or done:
            (directory / "state.json").write_text(json.dumps(state))
        if done:
            os._exit(0)  # the fuzzer's own way out waits for an interpreter that is gone by then
        if state["runs"] % 200 == 0:
            gc.collect()
        return 0

    mutator = Mutator(FOCUS[name], runner.draft())
    arguments = [sys.argv[0], str(corpus), "-max_len=4096", "-len_control=0", "-timeout=1000000", "-rss_limit_mb=0",
                 f"-artifact_prefix={directory}/", "-reload=0", "-print_final_stats=0", *options]  # fmt: skip
    atheris.Setup(arguments, one, custom_mutator=mutator, custom_crossover=mutator.cross)
    atheris.Fuzz()


def runner_quietly(runner: Runner, data: bytes) -> None:
    try:
        runner(data)
    except Exception:
        return


def resident() -> int:
    """Bytes of memory that this process has (proc_pid_statm(5))."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def instrument() -> None:
    """Tell the fuzzer which code is reached: every plain function of ours. Compiled ones stay as they are."""
    for module in list(sys.modules.values()):
        if module.__name__.split(".")[0] in ("collect", "analyze", "replay"):
            _instrument(module, module.__name__)


def _instrument(where: object, module: str) -> None:
    for thing in list(vars(where).values()):
        thing = getattr(thing, "__func__", thing)
        if isinstance(thing, property):
            thing = thing.fget
        if (
            isinstance(thing, types.FunctionType)
            and thing.__module__ == module
            and "<" not in thing.__code__.co_filename
        ):
            # Which code is reached, and no compared values: an edit is not made from bytes, so they would not help; and the hook
            # for them (atheris 3.0, _trace_cmp) keeps every pandas column that was ever compared.
            thing.__code__ = patch_code(thing.__code__, trace_dataflow=False)
        elif isinstance(thing, type) and thing.__module__ == module:
            _instrument(thing, module)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
