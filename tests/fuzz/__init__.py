"""Fuzzing of everything that reads a trace: `python -m tests.fuzz run` (see `__main__`).

An input is a short JSON list of edits to a small synthetic trace (`edits`), so that a kept corpus is small, readable, and
still means something when the format moves on. `answers` says what must hold of whatever comes of it, `mutate` makes new
inputs from old ones, `worker` is the process that a coverage-guided fuzzer (atheris) runs in.
"""
