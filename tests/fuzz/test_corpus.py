"""What fuzzing has found stays mended, and a part of the corpus is answered as it was: without the fuzzer, in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.answers import TARGETS
from tests.fuzz.inputs import CORPUS, FINDINGS, Runner, kept

REPLAYED = {"read": 60, "rebuilt": 8, "replayed": 20, "recovered": 12, "commanded": 3, "drawn": 1}
"""Inputs of a target that are replayed here, evenly out of all; the fuzzer runs them all."""


@pytest.mark.parametrize("name", list(TARGETS))
def test_the_corpus_gets_answers_or_one_line_each(name: str, tmp_path: Path) -> None:
    inputs = kept(name)
    assert inputs, f"{CORPUS} holds nothing for {name}"
    runner = Runner(name, tmp_path)
    for data in inputs[:: max(1, len(inputs) // REPLAYED[name])][: REPLAYED[name]]:
        runner(data)


@pytest.mark.parametrize("name", list(TARGETS))
def test_what_was_found_once_is_mended(name: str, tmp_path: Path) -> None:
    runner = Runner(name, tmp_path)
    for finding in map(json.loads, FINDINGS.read_text().splitlines()):
        if finding["target"] == name:
            runner(finding["input"].encode())


def test_the_corpus_is_small() -> None:
    assert sum(file.stat().st_size for file in CORPUS.iterdir()) < 1 << 20
