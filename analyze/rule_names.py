"""The rules of `__change_page_attr_set_clr` by name, and where each stands in the kernel.

The compiled loops count, per rule, the changes that exercised it (`analyze.entries.met`); `count_rules` adds those that
the columns of a trace tell alone. docs/rules.md is the table for people.

Sources are functions of arch/x86/mm/pat/set_memory.c unless another file is named; they hold from Linux 5.10 to 7.3
where no version stands there. The numbers are compiled in, so the stamp of compiled code covers this file too
(`analyze.jit` looks for its own name).
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["N_COUNTED", "Rule"]


class Rule(IntEnum):
    """One rule. Those below `N_COUNTED` are met by the compiled rules, the others are told by a change's columns."""

    text: str
    source: str

    def __new__(cls, value: int, text: str, source: str) -> Rule:
        rule = int.__new__(cls, value)
        rule._value_ = value
        rule.text, rule.source = text, source
        return rule

    # What becomes of a large leaf: two rules each, so that RULE + (level == 1G) is one. The order is that of rules._decide.
    KEPT_2M = 0, "2M leaf kept: it holds what is asked for, whatever the range", "__should_split_large_page (sameprot)"
    KEPT_1G = 1, "1G leaf kept: it holds what is asked for, whatever the range", "__should_split_large_page (sameprot)"
    REWRITTEN_2M = 2, "2M leaf rewritten in place: the call covers it", "__should_split_large_page (preserved)"
    REWRITTEN_1G = 3, "1G leaf rewritten in place: the call covers it", "__should_split_large_page (preserved)"
    SPLIT_2M = 4, "2M leaf split: the call covers a part of it", "__should_split_large_page, __split_large_page"
    SPLIT_1G = 5, "1G leaf split: the call covers a part of it", "__should_split_large_page, __split_large_page"
    FORCED_2M = 6, "2M leaf split: the call forces it (set_memory_4k)", "should_split_large_page (force_split)"
    FORCED_1G = 7, "1G leaf split: the call forces it (set_memory_4k)", "should_split_large_page (force_split)"
    RODATA_2M = 8, "2M leaf split: covered, but rodata may not become writable", "static_protections, protect_rodata"
    RODATA_1G = 9, "1G leaf split: covered, but rodata may not become writable", "static_protections, protect_rodata"
    STATIC_2M = 10, "2M leaf split and mended: it maps rodata writable", "split_set_pte (force_static_prot)"
    STATIC_1G = 11, "1G leaf split, not mended: it maps rodata writable", "split_set_pte (only 4K entries are mended)"

    SAME_4K = 12, "4K entry left alone: it holds what is asked for", "__change_page_attr"
    WRITTEN_4K = 13, "4K entry rewritten", "__change_page_attr"
    RODATA_4K = 14, "4K entry of rodata kept read-only", "static_protections, protect_rodata"
    GLOBAL_LOST = 15, "entry loses G with P", "pgprot_clear_protnone_bits"
    LARGE_ABSENT = (
        16,
        "large leaf made not present: its pfn is stored inverted",
        "asm/pgtable.h: pfn_pte, protnone_mask",
    )
    ABSENT_SPLIT = 17, "large leaf split while not present", "__split_large_page (PSE dropped)"
    PAT_LARGE = 18, "large leaf with the PAT bit, which lies elsewhere there", "pgprot_4k_2_large, pgprot_large_2_4k"
    HOLE_PASSED = 19, "hole passed over, page by page", "__cpa_process_fault"
    HOLE_FILLED = 20, "hole filled, and all behind it written anew", "__cpa_process_fault, populate_pgd"
    LEFT_SPLIT = 21, "call failed after a split: the split stays", "split_large_page (-ENOMEM)"
    NO_MASKS = 22, "no masks and no force: nothing", "__change_page_attr_set_clr (6.2 and later)"
    COLLAPSED_2M = 23, "512 equal 4K entries put back as 2M", "collapse_pmd_page (6.15 and later)"
    COLLAPSED_1G = 24, "512 equal 2M entries put back as 1G", "collapse_pud_page (6.15 and later)"
    HOTPLUG_ADD = 25, "memory came: holes mapped, in the sizes read afterwards", "mm/init_64.c: phys_pud_init"
    HOTPLUG_REMOVE = 26, "memory went: holes", "mm/init_64.c: remove_pagetable"

    ALIAS = 27, "alias call: a change elsewhere reaches the direct map", "cpa_process_alias"
    ALIAS_IMAGE = 28, "alias call on the kernel image's mapping", "cpa_process_alias"
    DECOY = (
        29,
        "decoy address: the call itself changes the direct map, its alias call finds that done",
        "set_mce_nospec",
    )
    PAGES_ARRAY = 30, "pages array: every page is a range of its own", "__change_page_attr_set_clr (CPA_PAGES_ARRAY)"
    FAILED = 31, "call failed at its first page", "split_large_page, __cpa_process_fault"
    FAILED_HALFWAY = 32, "call failed halfway: what is done stays", "__change_page_attr_set_clr (no rollback)"
    PAGE_DIRECTORY = (
        33,
        "call with a page directory (encrypt, decrypt)",
        "__set_memory_enc_dec, __set_memory_enc_pgtable",
    )
    KERNEL_4K = 34, "soft bit of entries that are 4K on purpose", "set_memory_4k (6.15 and later)"
    NO_ALIAS = 35, "call that looks for no alias", "__change_page_attr_set_clr (CPA_NO_CHECK_ALIAS; to 6.1 checkalias)"
    OVERLAPPED = 36, "two calls at once in one 2M frame", "cpa_lock, pgd_lock: each step by itself"


N_COUNTED = int(Rule.ALIAS)
"""Rules that the compiled loops count."""
