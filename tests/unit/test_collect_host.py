"""Facts of machine and kernel, from the texts of machines that are not here."""

from __future__ import annotations

import gzip
import platform
from pathlib import Path

import pytest

from collect import host
from collect.errors import HostError
from collect.kcore import KERNEL_IMAGE_BASE

CPU = """\
processor\t: {n}
vendor_id\t: GenuineIntel
model name\t: {model}
flags\t\t: fpu pse pae pdpe1gb lm{flags}
power management:

"""


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `_read` finds, by path; everything else is missing."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(host, "_read", lambda path: texts.get(path, "").strip())
    return texts


@pytest.mark.parametrize("n_cpus", [1, 2])
def test_an_emulated_machine_is_known_as_one(files: dict[str, str], n_cpus: int) -> None:
    files["/sys/class/dmi/id/sys_vendor"] = "QEMU"
    model = "QEMU TCG CPU version 2.5+"
    files["/proc/cpuinfo"] = "".join(CPU.format(n=n, model=model, flags=" hypervisor") for n in range(n_cpus))
    facts = host.cpu_facts()
    assert facts["emulated"] is True
    assert (facts["model"], facts["hypervisor"], facts["gb_pages"]) == (model, "QEMU", True)


def test_a_real_machine_has_no_hypervisor(files: dict[str, str]) -> None:
    files["/sys/class/dmi/id/sys_vendor"] = "Dell Inc."
    files["/proc/cpuinfo"] = CPU.format(n=0, model="Intel(R) Xeon(R) Gold 6140", flags="")
    facts = host.cpu_facts()
    assert (facts["emulated"], facts["hypervisor"]) == (False, None)


def test_a_machine_that_says_nothing_is_unknown(files: dict[str, str]) -> None:
    facts = host.cpu_facts()
    assert (facts["model"], facts["emulated"], facts["hypervisor"], facts["gb_pages"]) == (
        "unknown",
        False,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", "none"),
        ("[none] integrity confidentiality", "none"),
        ("none [integrity] confidentiality", "integrity"),
        ("none integrity [confidentiality]", "confidentiality"),
    ],
)
def test_the_lockdown_mode_is_the_one_in_brackets(files: dict[str, str], text: str, mode: str) -> None:
    files["/sys/kernel/security/lockdown"] = text
    assert host.lockdown() == mode


def test_the_configuration_is_that_of_the_running_kernel_and_short(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-test")
    text = "#\n# CONFIG_KFENCE is not set\nCONFIG_SECRETMEM=y\nCONFIG_NODES_SHIFT=10\nCONFIG_EXT4_FS=m\n"
    files["/boot/config-6.1.0-other"] = "CONFIG_SECRETMEM=n\n"
    files["/lib/modules/6.1.0-test/build/.config"] = text
    assert host.kernel_facts()["config"] == {"CONFIG_SECRETMEM": "y", "CONFIG_NODES_SHIFT": "10"}
    files.clear()
    packed = tmp_path / "config.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    monkeypatch.setattr(host, "Path", lambda path: packed if path == "/proc/config.gz" else Path(path))
    assert host.kernel_facts()["config"] == {"CONFIG_SECRETMEM": "y", "CONFIG_NODES_SHIFT": "10"}


class Kcore:
    """Memory of a kernel that KASLR moved by 16 MiB down from where it was linked."""

    max_pfn, ranges, page_offset, paging_levels = 0x100_0000, [[1, 0x100_0000]], 0xFFFF_9000_4000_0000, 4
    note: dict[str, str]

    def __init__(self, words: dict[int, int], **note: str) -> None:
        self.note = {name.replace("phys_base", "NUMBER(phys_base)"): value for name, value in note.items()}
        self.words = words

    def read_u64(self, virtual: int) -> int:
        return self.words[virtual]


class Symbols(dict[str, int]):
    def address(self, name: str) -> int | None:
        return self.get(name)


def test_rodata_and_the_pool_of_kfence_are_frames(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: "6.1.0-test")
    files["/boot/config-6.1.0-test"] = "CONFIG_KFENCE=y\nCONFIG_KFENCE_NUM_OBJECTS=63\n"
    files["/proc/zoneinfo"] = (
        "Node 0, zone      DMA\n  pages free     3840\n        spanned  4095\n  start_pfn:           1\n"
        "Node 1, zone   Normal\n  pages free     9\n        spanned  4096\n  start_pfn:           1048576\n"
        "Node 1, zone  Movable\n  pages free     0\n        spanned  0\n  start_pfn:           0\n"
    )
    symbols = Symbols(
        __start_rodata=KERNEL_IMAGE_BASE + (32 << 20),
        __end_rodata=KERNEL_IMAGE_BASE + (40 << 20),
        __kfence_pool=0xFFFF_FFFF_8300_0000,
        physical_mask=0xFFFF_FFFF_8300_0008,
    )
    mask = (1 << 46) - 1
    words = {0xFFFF_FFFF_8300_0000: Kcore.page_offset + (0x8000 << 12), 0xFFFF_FFFF_8300_0008: mask}
    facts = host.memory_facts(Kcore(words, phys_base=str(-16 << 20)), symbols)  # type: ignore[arg-type]
    assert facts == {
        "max_pfn": 0x100_0000,
        "ranges": [[1, 0x100_0000]],
        "page_offset": Kcore.page_offset,
        "paging_levels": 4,
        "physical_mask": mask,
        "rodata": [0x1000, 0x1800],
        "kfence_pool": [0x8000, 0x8000 + 128],
        "zones": {"node 0 DMA": [1, 4096], "node 1 Normal": [1 << 20, (1 << 20) + 4096]},
    }


def test_a_kernel_without_them_has_none(files: dict[str, str]) -> None:
    facts = host.memory_facts(Kcore({}), Symbols())  # type: ignore[arg-type]
    assert (facts["rodata"], facts["kfence_pool"], facts["physical_mask"]) == (None, None, (1 << 52) - 1)
    off = Symbols(__kfence_pool=0xFFFF_FFFF_8300_0000)
    assert host.memory_facts(Kcore({0xFFFF_FFFF_8300_0000: 0}), off)["kfence_pool"] is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "rodata"), [(0, None), (0x7F_0000_0000, None), (1, [0x2000, 0x2800]), (1 << 40 | 1, [0x2000, 0x2800])]
)
def test_rodata_that_the_kernel_does_not_protect_is_none(
    files: dict[str, str], word: int, rodata: list[int] | None
) -> None:
    """Booted with rodata=off; and with something else behind the variable, an int to 6.x and a byte at least."""
    symbols = Symbols(
        __start_rodata=KERNEL_IMAGE_BASE + (32 << 20), __end_rodata=KERNEL_IMAGE_BASE + (40 << 20),
        kernel_set_to_readonly=0xFFFF_FFFF_8300_0000,
    )  # fmt: skip
    assert host.memory_facts(Kcore({0xFFFF_FFFF_8300_0000: word}), symbols)["rodata"] == rodata  # type: ignore[arg-type]


@pytest.mark.parametrize(("domain", "refused"), [(0, False), (1, True), (2, False), (0xAB_0000_0001, True)])
def test_a_xen_pv_domain_is_refused_with_its_reason(files: dict[str, str], domain: int, refused: bool) -> None:
    """Bare metal, PV, HVM; and a PV domain with something else behind the four bytes."""
    kcore, symbols = Kcore({0xFFFF_FFFF_8300_0000: domain}), Symbols(xen_domain_type=0xFFFF_FFFF_8300_0000)
    if not refused:
        assert host.memory_facts(kcore, symbols)["max_pfn"] == Kcore.max_pfn  # type: ignore[arg-type]
        return
    with pytest.raises(HostError, match=r"a Xen PV domain: .* refused") as caught:
        host.memory_facts(kcore, symbols)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
