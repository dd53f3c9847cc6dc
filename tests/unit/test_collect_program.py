"""The programs as they are put together for kernels old and new, without bcc; and which bcc is taken."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collect import compiler, program
from collect.compiler import import_bcc
from collect.errors import HostError
from collect.kallsyms import Kallsyms
from collect.probes import CHOKE_POINT, CPA_MEMBERS, Features, probe_features
from collect.schema import ChangeKind, RegionKind
from collect.source import source

INT = {("bpf_jit_binary_alloc", 0), ("bpf_prog_pack_alloc", 0), (CHOKE_POINT, 1), (CHOKE_POINT, 2)}
"""Parameters of four bytes, not eight; the number behind the last parameter is the return value's."""
# Functions by the kernels of Debian that have them, with their number of parameters there.
ALWAYS = {
    CHOKE_POINT: 2,
    "flush_tlb_all": 0,
    "arch_add_memory": 4,
    "arch_remove_memory": 3,
    "bpf_int_jit_compile": 1,
    "load_module": 3,
    "vfree": 1,
    "bpf_jit_free_exec": 1,
}
PARAMETERS = {3: ("start", "size", "altmap"), 4: ("nid", "start", "size", "params")}
KERNELS = {
    "5.10": ALWAYS
    | {
        "arch_remove_memory": 4,
        "bpf_jit_binary_alloc": 4,
        "bpf_jit_alloc_exec_page": 0,
        "module_alloc": 1,
        "module_memfree": 1,
    },
    "6.1": ALWAYS
    | {
        "bpf_jit_binary_alloc": 4,
        "bpf_prog_pack_alloc": 2,
        "bpf_prog_pack_free": 1,
        "module_alloc": 1,
        "module_memfree": 1,
        "secretmem_fault": 1,
        "secretmem_free_folio": 1,
    },
    "7.2": ALWAYS
    | {
        "bpf_prog_pack_alloc": 2,
        "bpf_prog_pack_free": 2,
        "execmem_alloc": 2,
        "execmem_vmalloc": 4,
        "execmem_free": 1,
        "collapse_large_pages": 2,
        "secretmem_fault": 1,
        "secretmem_free_folio": 1,
    },
}


class FakeBtf:
    """Prototypes and layouts as a dictionary; `struct page` has 64 bytes."""

    def __init__(self, functions: dict[str, int]) -> None:
        self.functions = functions
        self.offsets = {("cpa_data", member): 8 * i for i, member in enumerate(CPA_MEMBERS.values())}
        self.offsets |= {("bpf_prog", "aux"): 56, ("bpf_prog_aux", "name"): 1100, ("module", "name"): 24}
        self.page_bytes = 64

    def signature(self, function: str) -> tuple[int, ...] | None:
        n = self.functions.get(function)
        return None if n is None else tuple(4 if (function, i) in INT else 8 for i in range(n + 1))

    def parameters(self, function: str) -> tuple[str, ...] | None:
        return (
            PARAMETERS[self.functions[function]]
            if function.startswith("arch_") and function in self.functions
            else None
        )

    def function_id(self, function: str) -> int | None:
        return None

    def size(self, name: str) -> int | None:
        return {"page": self.page_bytes}.get(name)

    def offset(self, name: str, member: str) -> int | None:
        return self.offsets.get((name, member))


def symbols(folder: Path, functions: dict[str, int]) -> Kallsyms:
    path = folder / "kallsyms"
    path.write_text("".join(f"{0xFFFF_FFFF_8100_0000 + 64 * i:x} t {name}\n" for i, name in enumerate(functions)))
    return Kallsyms(path)


def probed(folder: Path, functions: dict[str, int]) -> Features:
    return probe_features(symbols(folder, functions), FakeBtf(functions))  # type: ignore[arg-type]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stubs(text: str) -> dict[str, str]:
    """Body by probe (`entry NAME`, `exit NAME`)."""
    found = re.findall(r"^(KFUNC|KRETFUNC)_PROBE\((\w+)([^{]*)\) \{(.*)\}$", text, re.MULTILINE)
    bodies = {f"{'entry' if kind == 'KFUNC' else 'exit'} {name}": body for kind, name, _, body in found}
    assert len(bodies) == len(found) == text.count("_PROBE(") - text.count("RAW_TRACEPOINT_PROBE("), "each once"
    return bodies


def test_every_kernel_has_its_functions_attached_at_both_ends(kernel: str, tmp_path: Path) -> None:
    expected = {
        "5.10": "bpf_jit_binary_alloc bpf_jit_alloc_exec_page module_alloc module_memfree",
        "6.1": "bpf_jit_binary_alloc bpf_prog_pack_alloc module_alloc module_memfree secretmem_fault",
        "7.2": "bpf_prog_pack_alloc execmem_alloc execmem_vmalloc execmem_free secretmem_fault vfree collapse_large_pages",
    }[kernel].split()
    expected += [CHOKE_POINT, "arch_add_memory", "arch_remove_memory", "bpf_int_jit_compile", "load_module"]
    entry_only = ["bpf_jit_free_exec", "flush_tlb_all"] + {
        "5.10": [],
        "6.1": ["bpf_prog_pack_free", "secretmem_free_folio"],
        "7.2": ["bpf_prog_pack_free", "secretmem_free_folio"],
    }[kernel]
    found = stubs(source(probed(tmp_path, KERNELS[kernel]), pages="scoped"))
    assert set(found) == {f"{end} {name}" for name in expected for end in ("entry", "exit")} | {
        f"entry {name}" for name in entry_only
    }


def test_a_stub_is_silent_until_armed_and_copies_what_it_uses(kernel: str, tmp_path: Path) -> None:
    for probe, body in stubs(source(probed(tmp_path, KERNELS[kernel]), pages="scoped")).items():
        assert body.startswith(" if (!is_armed()) return 0;"), probe
        copied = re.findall(r"u64 (\w+) = 0; bpf_probe_read_kernel\(&\1, (\d), \(void \*\)&ctx\[(\d+)\]\);", body)
        function = probe.split()[1]
        n_params = KERNELS[kernel][function]
        for name, width, slot in copied:
            assert int(width) == (4 if (function, int(slot)) in INT else 8), f"{probe}: the rest of a register is noise"
            assert int(slot) == (n_params if name == "ret" else int(name[1:])), probe
            assert int(slot) < n_params or (name == "ret" and probe.startswith("exit")), probe
        rest = body.split(";")[-3:]
        used = set(re.findall(r"\b(a\d|ret)\b", "".join(rest)))
        assert used == {name for name, _, _ in copied}, probe


def test_the_choke_points_arguments_and_return_go_to_its_programs(kernel: str, tmp_path: Path) -> None:
    found = stubs(source(probed(tmp_path, KERNELS[kernel]), pages="scoped"))
    assert found[f"entry {CHOKE_POINT}"].rstrip().endswith("return change_entry(a0, a1, BY_FENTRY, 0);")
    assert found[f"exit {CHOKE_POINT}"].rstrip().endswith("return change_exit(ctx, a0, ret);")


@pytest.mark.parametrize(
    ("kernel", "function", "tier", "kind", "size"),
    [
        ("5.10", "bpf_jit_binary_alloc", "ASKED", "BPF_IMAGE", "a0"),
        ("5.10", "bpf_jit_alloc_exec_page", "ASKED", "BPF_IMAGE", "4096"),
        ("5.10", "module_alloc", "BACKING", "MODULE_ALLOC", "a0"),
        ("6.1", "bpf_prog_pack_alloc", "ASKED", "BPF_IMAGE", "a0"),
        ("7.2", "execmem_alloc", "BACKING", "EXECMEM", "a1"),
        ("7.2", "execmem_vmalloc", "BACKING", "EXECMEM", "a1"),
    ],
)
def test_a_region_is_of_its_tier_kind_and_size(
    kernel: str, function: str, tier: str, kind: str, size: str, tmp_path: Path
) -> None:
    found = stubs(source(probed(tmp_path, KERNELS[kernel]), pages="scoped"))
    assert f"region_alloc_enter(KIND_{kind}, {size});" in found[f"entry {function}"]
    assert f"region_alloc_exit(ctx, TIER_{tier}, KIND_{kind}, ret, {size});" in found[f"exit {function}"]


def test_hotplug_is_told_its_range_wherever_the_parameters_stand(tmp_path: Path) -> None:
    for kernel, start, size in (("5.10", "a1", "a2"), ("6.1", "a0", "a1")):
        found = stubs(source(probed(tmp_path, KERNELS[kernel]), pages="scoped"))
        added, removed = found["entry arch_add_memory"], found["entry arch_remove_memory"]
        assert "hotplug_entry(KIND_CHANGE_HOTPLUG_ADD, a1, a2);" in added
        assert f"hotplug_entry(KIND_CHANGE_HOTPLUG_REMOVE, {start}, {size});" in removed
        assert "writer_exit(ctx, KIND_CHANGE_HOTPLUG_ADD, ret, 1);" in found["exit arch_add_memory"]


def test_a_collapse_that_did_nothing_is_not_recorded(tmp_path: Path) -> None:
    found = stubs(source(probed(tmp_path, KERNELS["7.2"]), pages="scoped"))
    assert "writer_exit(ctx, KIND_CHANGE_COLLAPSE, ret, (s32)ret > 0);" in found["exit collapse_large_pages"]


def test_splits_are_told_by_where_the_two_functions_lie(tmp_path: Path) -> None:
    features = probed(tmp_path, KERNELS["6.1"])
    choke, flush = (symbols(tmp_path, KERNELS["6.1"]).address(name) for name in (CHOKE_POINT, "flush_tlb_all"))
    assert choke is not None
    assert flush is not None
    text = source(features, pages="none")
    bounds = {"CHOKE_BEGIN": choke, "CHOKE_END": choke + 64, "FLUSH_BEGIN": flush, "FLUSH_END": flush + 64}
    for name, value in bounds.items():
        assert f"#define {name} {value}ULL" in text


def test_a_free_is_told_by_its_address_and_keeps_its_pages_in_scope_if_it_backs(tmp_path: Path) -> None:
    found = stubs(source(probed(tmp_path, KERNELS["6.1"]), pages="scoped"))
    assert "region_free(ctx, TIER_ASKED, CLASS_ASKED, KIND_BPF_IMAGE, a0);" in found["entry bpf_prog_pack_free"]
    assert "region_free(ctx, TIER_BACKING, CLASS_BACKING, KIND_MODULE_ALLOC, a0);" in found["entry module_memfree"]
    assert "region_free_exit();" in found["exit module_memfree"]
    assert "secret_page_free(ctx, frame_of(a0));" in found["entry secretmem_free_folio"]


def test_every_name_of_ours_that_the_programs_use_is_defined(kernel: str, tmp_path: Path) -> None:
    text = re.sub(r"//.*", "", source(probed(tmp_path, KERNELS[kernel]), pages="scoped"))
    given = {"TOP_PGT", "PAGE_OFFSET_BASE", "VMEMMAP_BASE", "PHYS_MASK", "LEVELS"}
    used = set(
        re.findall(r"\b(?:KIND|TIER|EVENT|SCOPE|CLASS|LOST|CPA)_[A-Z_]+\b|\b[A-Z_]+_(?:OFFSET|RING_PAGES)\b", text)
    )
    enumerated = set(re.findall(r"^\t(LOST_\w+)", text, re.MULTILINE))
    defined = set(re.findall(r"^#define (\w+)", text, re.MULTILINE))
    assert used - defined - enumerated - given == set()
    codes = dict(re.findall(r"^#define KIND_(\w+) (\d+)$", text, re.MULTILINE))
    assert {name: int(value) for name, value in codes.items()} == {
        **{kind.name: int(kind) for kind in RegionKind},
        **{f"CHANGE_{kind.name}": int(kind) for kind in ChangeKind},
    }


def test_page_programs_are_left_out_when_pages_are_not_recorded(tmp_path: Path) -> None:
    features = probed(tmp_path, KERNELS["6.1"])
    assert "mm_page_alloc" in source(features, pages="scoped")
    assert "mm_page_alloc" not in source(features, pages="none")
    assert stubs(source(features, pages="scoped")) == stubs(source(features, pages="none"))


def test_what_a_kernel_lacks_is_named_with_what_it_costs(tmp_path: Path) -> None:
    old = probed(tmp_path, KERNELS["5.10"])
    assert [missing.name for missing in old.missing] == ["secretmem_fault"]
    assert probed(tmp_path, KERNELS["6.1"]).missing == probed(tmp_path, KERNELS["7.2"]).missing == []
    without = {
        name: n for name, n in KERNELS["7.2"].items() if name not in ("load_module", "secretmem_free_folio", "vfree")
    }
    missing = probed(tmp_path, without).missing
    assert [row.name for row in missing] == ["secretmem_free_folio or secretmem_freepage", "load_module", "vfree"]
    assert all(row.why and row.costs for row in missing)
    nothing = probed(tmp_path, {CHOKE_POINT: 2})
    assert "regions are not recorded" in [row.costs for row in nothing.missing]
    assert "splits are rebuilt by our rules, not observed as well" in [row.costs for row in nothing.missing]
    assert set(stubs(source(nothing, pages="scoped"))) == {f"entry {CHOKE_POINT}", f"exit {CHOKE_POINT}"}


def test_a_symbol_without_prototype_is_not_attached_to(tmp_path: Path) -> None:
    functions = KERNELS["5.10"]
    types = {name: n for name, n in functions.items() if name != "module_alloc"}
    features = probe_features(symbols(tmp_path, functions), FakeBtf(types))  # type: ignore[arg-type]
    assert "module_alloc" not in features.signatures
    types = {name: n for name, n in functions.items() if name != CHOKE_POINT}
    with pytest.raises(HostError, match="not a symbol with a BTF prototype"):
        probe_features(symbols(tmp_path, functions), FakeBtf(types))  # type: ignore[arg-type]


def test_a_kernel_that_would_be_recorded_wrongly_is_refused(tmp_path: Path) -> None:
    functions = KERNELS["6.1"]
    table = symbols(tmp_path, functions)
    for member in CPA_MEMBERS.values():
        btf = FakeBtf(functions)
        del btf.offsets["cpa_data", member]
        with pytest.raises(HostError, match=f"no member '{member}'"):
            probe_features(table, btf)  # type: ignore[arg-type]
    with pytest.raises(HostError, match="takes 3 arguments, not 2"):
        probe_features(table, FakeBtf(functions | {CHOKE_POINT: 3}))  # type: ignore[arg-type]
    btf = FakeBtf(functions)
    btf.page_bytes = 56
    with pytest.raises(HostError, match="56 bytes, not 64"):
        probe_features(table, btf)  # type: ignore[arg-type]


@pytest.fixture
def no_bcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A Python that knows no bcc; and a folder that stands for the distribution's packages, still empty."""
    before = {name: module for name, module in sys.modules.items() if name == "bcc" or name.startswith("bcc.")}
    for name in before:
        del sys.modules[name]
    folders = [path for path in sys.path if not (Path(path) / "bcc").exists()]
    monkeypatch.setattr(sys, "path", folders)
    system = tmp_path / "dist-packages"
    system.mkdir()
    monkeypatch.setattr(compiler, "SYSTEM_PACKAGES", (str(tmp_path / "none"), str(system)))
    yield system
    for name in [name for name in sys.modules if name == "bcc" or name.startswith("bcc.")]:
        del sys.modules[name]
    sys.modules.update(before)


def package(folder: Path, text: str, name: str = "bcc") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return folder


BPF_COMPILER = "from bcc import table\nclass BPF:\n    where = __file__\n"


def with_table(folder: Path) -> Path:
    package(folder, BPF_COMPILER)
    (folder / "bcc" / "table.py").write_text("")
    return folder


def test_without_bcc_the_package_to_install_is_named(no_bcc: Path) -> None:
    with pytest.raises(HostError, match=r"bcc: not found; .*python3-bpfcc \(Debian, Ubuntu\) or python3-bcc"):
        import_bcc()


def test_bcc_of_the_environment_is_taken(no_bcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(with_table(tmp_path / "venv")))
    with_table(no_bcc)
    assert import_bcc().BPF.where.startswith(str(tmp_path / "venv"))


def test_bcc_of_the_distribution_is_found_by_path(no_bcc: Path) -> None:
    """As from a virtual environment, which does not see the distribution's packages."""
    path = list(sys.path)
    with_table(no_bcc)
    assert import_bcc().BPF.where.startswith(str(no_bcc))
    assert sys.path == path


def test_the_namesake_on_pypi_is_refused_by_name(no_bcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package(tmp_path / "venv", "def lattice(): ...\n")))
    with pytest.raises(HostError, match=r"venv/bcc/__init__\.py: this 'bcc' is PyPI's namesake.*python3-bpfcc"):
        import_bcc()


def test_the_namesake_does_not_hide_the_distributions_bcc(
    no_bcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(package(tmp_path / "venv", "import bcc.table\n")))
    (tmp_path / "venv" / "bcc" / "table.py").write_text("lattice = 1\n")
    with_table(no_bcc)
    bcc = import_bcc()
    assert bcc.BPF.where.startswith(str(no_bcc))
    assert not hasattr(bcc.table, "lattice"), "nothing of the namesake is left"


def test_a_bcc_that_does_not_load_is_an_error_in_one_line(no_bcc: Path) -> None:
    package(no_bcc, "raise OSError('libbcc.so.0: cannot open shared object file')\n")
    with pytest.raises(HostError, match=r"does not load into Python 3\.\d+\.\d+ \(libbcc") as error:
        import_bcc()
    assert "\n" not in str(error.value)


def test_nothing_is_lost_that_another_program_took_in(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [f"{group}_programs_not_run" for group in program.GROUPS]
    loaded = program.Program.__new__(program.Program)
    loaded._all_pages, loaded.page_rings, loaded._missed_when_off = False, None, None
    loaded._before = dict.fromkeys(
        [*program.LOSSES, *groups, "kprobe_only", "splits_rescued", "regions_rescued", "rescued"], 1
    )
    now = loaded._before | {"pages_programs_not_run": 6, "rescued": 4, "changes_programs_not_run": 5, "kprobe_only": 3}
    monkeypatch.setattr(program.Program, "_lost_until_now", lambda self: now)
    assert {name: n for name, n in loaded.losses().items() if n} == {"changes_programs_not_run": 2}
    assert loaded.page_programs_not_run() == 2
    now |= {"splits_programs_not_run": 4, "splits_rescued": 4}
    now |= {"rescued": 9, "kprobe_only": 5, "exits_programs_not_run": 7, "regions_programs_not_run": 2}
    assert {name: n for name, n in loaded.losses().items() if n} == {"regions_programs_not_run": 1}
    assert loaded.page_programs_not_run() == 0
    not_run = {f"{group}_programs_not_run" for group in ("changes", "splits", "regions")}
    assert set(loaded.losses()) == {*program.LOSSES} | not_run


@pytest.mark.parametrize(
    ("name", "group"),
    [
        (f"kfunc__vmlinux__{CHOKE_POINT}", "changes"),
        (f"kretfunc__vmlinux__{CHOKE_POINT}", "exits"),
        ("kfunc__vmlinux__flush_tlb_all", "splits"),
        ("kfunc__vmlinux__collapse_large_pages", "changes"),
        ("kretfunc__vmlinux__arch_add_memory", "exits"),
        ("kprobe_change_entry", "spare"),
        ("kprobe_split", "spare"),
        ("spare_enter_execmem_alloc", "spare"),
        ("spare_leave_bpf_prog_pack_alloc", "spare"),
        ("first_mm_page_alloc", "pages"),
        ("spare_mm_page_free", "spare"),
        ("kfunc__vmlinux__vfree", "vfree"),
        ("kfunc____alloc_pages_bulk", "unreported"),
        ("kretfunc__vmlinux__alloc_contig_range_noprof", "unreported"),
        ("kfunc__vmlinux__split_page", "unreported"),
        ("kfunc__vmlinux__execmem_alloc", "regions"),
        ("raw_tracepoint__module_load", "regions"),
    ],
)
def test_what_a_program_that_did_not_run_would_have_recorded(name: str, group: str) -> None:
    assert program._group(name) == group


def spares(text: str) -> dict[str, str]:
    return dict(
        re.findall(r"^int (spare_(?:enter|leave)_\w+)\(unsigned long long \*ctx\) \{(.*)\}$", text, re.MULTILINE)
    )


def test_a_spare_stands_at_every_function_of_the_regions_but_vfree(kernel: str, tmp_path: Path) -> None:
    features = probed(tmp_path, KERNELS[kernel])
    text = source(features, pages="none")
    at_entry = {name.removeprefix("entry ") for name in stubs(text) if name.startswith("entry ")}
    at_exit = {name.removeprefix("exit ") for name in stubs(text) if name.startswith("exit ")}
    others = {CHOKE_POINT, "flush_tlb_all", "collapse_large_pages", "arch_add_memory", "arch_remove_memory", "vfree"}
    found = spares(text)
    assert {name.removeprefix("spare_enter_") for name in found if "_enter_" in name} == at_entry - others
    assert {name.removeprefix("spare_leave_") for name in found if "_leave_" in name} == at_exit - others


def test_a_spare_does_what_the_program_it_stands_in_for_does(tmp_path: Path) -> None:
    text = source(probed(tmp_path, KERNELS["6.1"]), pages="none")
    first, spare = stubs(text), spares(text)
    for name in ("bpf_prog_pack_alloc", "module_memfree", "secretmem_fault", "load_module"):
        [number] = re.findall(r"first_at_entry\((\d+), BY_FENTRY, 1\)", first[f"entry {name}"])
        assert f"first_at_entry({number}, BY_KPROBE, 1)" in spare[f"spare_enter_{name}"]
        assert f"first_at_exit({number}, BY_FENTRY)" in first[f"exit {name}"]
        assert f"first_at_exit({number}, BY_KPROBE)" in spare[f"spare_leave_{name}"]
    # bpf_prog_pack_alloc(u32 size, ...): half of its register; at its exit no argument is left.
    assert "u64 a0 = (u32)ctx[14]; region_alloc_enter(KIND_BPF_IMAGE, a0);" in spare["spare_enter_bpf_prog_pack_alloc"]
    assert (
        "u64 ret = ctx[10]; region_alloc_exit(ctx, TIER_ASKED, KIND_BPF_IMAGE, ret, top_size());"
        in spare["spare_leave_bpf_prog_pack_alloc"]
    )
    assert "first_at_entry" in first["entry bpf_prog_pack_free"]
    assert "spare_leave_bpf_prog_pack_free" not in spare
