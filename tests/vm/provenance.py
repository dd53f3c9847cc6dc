"""Keeps a recording of the lab as a sample trace, with a short file that says where it came from.

`python3 -m tests.vm.provenance TRACE sample_traces/NAME` copies the trace as it is and writes PROVENANCE.md from what
the recorder (manifest.json) and the lab (lab.json) wrote themselves.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

__all__ = ["keep", "provenance"]


def keep(trace: Path, sample: Path) -> None:
    """Copy `trace` to `sample` and write its PROVENANCE.md; a sample that is there is replaced."""
    manifest = json.loads((trace / "manifest.json").read_text())
    lab = json.loads((trace / "lab.json").read_text())
    if sample.exists():
        shutil.rmtree(sample)
    shutil.copytree(trace, sample)
    for file in sample.iterdir():
        file.chmod(0o644)
    (sample / "PROVENANCE.md").write_text(provenance(sample.name, manifest, lab))


def provenance(name: str, manifest: dict[str, Any], lab: dict[str, Any]) -> str:
    """The text of PROVENANCE.md."""
    kernel, machine, load = lab["kernel"], lab["machine"], lab["load"]
    package = next(f"{key} {value}" for key, value in kernel["packages"].items() if not key.startswith("linux-headers"))
    paging = "5-level paging" if machine["la57"] else "4-level paging"
    options = f"--load {load['name']} --seed {load['seed']}" + (" --aged" if load["aged"] else "")
    given = list(load["argv"][2:])
    for option in ("--seed", "--stats"):  # the lab's own
        if option in given:
            del given[given.index(option) : given.index(option) + 2]
    if given:
        options += f" --load-args '{' '.join(given)}'"
    recorder = lab["recorder"]["argv"]
    asked = recorder[recorder.index("-o") + 2 : recorder.index("--")]
    if asked:
        options += f" --recorder-args '{' '.join(asked)}'"
    release = kernel["release"].split("-")[0].split("+")[0]
    version = ".".join(release.split(".")[:2])
    counts = ", ".join(
        f"{count} {what.replace('_', ' ')}" for what, count in load["statistics"]["counts"].items() if count
    )
    return f"""# {name}

A recording of a real kernel by directmap's own collector, kept as it was written. Nothing in it is made up.

* kernel: Debian {package} ({kernel["suite"]}), {machine["memory_mb"] >> 10} GB, {machine["cpus"]} CPUs, {paging}
* machine: {machine["qemu"]}, {"software emulation, so its times and rates mean nothing" if machine["accel"] == "tcg" else machine["accel"]}
* command: `python3 -m tests.vm record --kernel {version} {options} --memory {machine["memory_mb"] >> 10}G --cpus {machine["cpus"]} -o DIR`
* load: {load["name"]}, {"aged" if load["aged"] else "fresh"} memory: {counts}
* date: {lab["date"]}
* tool: directmap {manifest["tool_version"]}, trace format {manifest["format_version"]}
"""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python3 -m tests.vm.provenance TRACE sample_traces/NAME")
    keep(Path(sys.argv[1]), Path(sys.argv[2]))
