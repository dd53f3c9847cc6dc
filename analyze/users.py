"""Users of the direct map, and the kernel symbols by which a stack gives them away.

A symbol stands here only if it belongs to one user alone. What several users share (module_alloc, vfree,
set_memory_ro, execmem_alloc) does not, nor do the frames that tracing itself adds (bpf_trace_run*, bpf_trampoline_*,
ftrace_trampoline). The innermost symbol decides: a module that registers a kprobe while it loads makes a kprobe's page.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["SYMBOLS", "USER_LABELS", "USER_NAMES", "User"]


class User(IntEnum):
    """Whose doing a change is."""

    OTHER = 0
    MODULE = 1
    BPF = 2
    KPROBE = 3
    FTRACE = 4
    SECRETMEM = 5
    COLLECTOR = 6
    """Our own recorder, while it records."""


USER_NAMES = tuple(user.name.lower() for user in User)

USER_LABELS = {
    "module": "modules",
    "bpf": "BPF",
    "kprobe": "kprobes",
    "ftrace": "ftrace",
    "secretmem": "secretmem",
    "collector": "our recorder",
    "other": "other",
}
"""How reports call them, in the order of their legends."""

_BY_SOURCE: dict[tuple[User, str], str] = {
    # kernel/module.c (5.10), kernel/module/main.c and strict_rwx.c (6.0 and later)
    (User.MODULE, "kernel/module"): (
        "load_module do_init_module __do_sys_init_module __do_sys_finit_module __do_sys_delete_module init_module_from_file "
        "idempotent_init_module free_module do_free_init do_init_free module_enable_ro module_enable_rodata_ro "
        "module_enable_text_rox module_enable_nx module_enable_data_nx module_enable_x module_set_memory module_memory_alloc "
        "module_memory_free free_mod_mem move_module layout_and_allocate module_deallocate "
        "free_modinfo module_enable_rodata_ro_after_init"
    ),
    # The init function of a module (do_one_initcall, init/main.c) is the driver's own doing, not its memory's.
    (User.OTHER, "init/main.c"): "do_one_initcall",
    # kernel/bpf/core.c: images and packs; syscall.c: everything asked for by bpf(2)
    (User.BPF, "kernel/bpf/core.c"): (
        "bpf_prog_select_runtime bpf_prog_free bpf_prog_free_deferred bpf_jit_binary_alloc bpf_jit_binary_free "
        "bpf_jit_binary_pack_alloc bpf_jit_binary_pack_finalize bpf_jit_binary_pack_free bpf_jit_binary_pack_hdr "
        "bpf_prog_pack_alloc bpf_prog_pack_free alloc_new_pack bpf_jit_free bpf_jit_alloc_exec bpf_jit_free_exec "
        "bpf_prog_realloc bpf_prog_alloc_jited_linfo"
    ),
    (User.BPF, "kernel/bpf/syscall.c"): (
        "__sys_bpf __do_sys_bpf __x64_sys_bpf __se_sys_bpf bpf_prog_load bpf_prog_put_deferred __bpf_prog_put "
        "__bpf_prog_put_noref __bpf_prog_put_rcu bpf_prog_release bpf_map_free_deferred bpf_link_free "
        "bpf_link_put_deferred bpf_link_release bpf_tracing_prog_attach bpf_raw_tp_link_attach bpf_check"
    ),
    # kernel/bpf/trampoline.c, dispatcher.c, bpf_struct_ops.c
    (User.BPF, "kernel/bpf/trampoline.c"): (
        "bpf_trampoline_update bpf_trampoline_link_prog bpf_trampoline_unlink_prog bpf_trampoline_put "
        "bpf_tramp_image_alloc bpf_tramp_image_free bpf_tramp_image_put __bpf_tramp_image_put_deferred "
        "__bpf_tramp_image_put_rcu __bpf_tramp_image_put_rcu_tasks __bpf_tramp_image_release arch_alloc_bpf_trampoline "
        "arch_free_bpf_trampoline arch_protect_bpf_trampoline bpf_dispatcher_change_prog bpf_jit_alloc_exec_page "
        "bpf_image_alloc bpf_struct_ops_map_update_elem bpf_struct_ops_map_free bpf_struct_ops_image_alloc"
    ),
    # arch/x86/net/bpf_jit_comp.c
    (
        User.BPF,
        "arch/x86/net/bpf_jit_comp.c",
    ): "bpf_int_jit_compile arch_prepare_bpf_trampoline arch_prepare_bpf_dispatcher",
    # net/core/filter.c, kernel/seccomp.c: classic filters on sockets and of seccomp become programs of the same kind
    (User.BPF, "net/core/filter.c"): (
        "bpf_prepare_filter bpf_migrate_filter bpf_prog_create bpf_prog_create_from_user bpf_prog_destroy "
        "bpf_release_filter __bpf_prog_release __get_filter sk_attach_filter sk_detach_filter "
        "sk_filter_release_rcu sk_filter_uncharge"
    ),
    (User.BPF, "kernel/seccomp.c"): (
        "seccomp_prepare_filter seccomp_prepare_user_filter seccomp_set_mode_filter seccomp_filter_release __put_seccomp_filter"
    ),
    # kernel/kprobes.c, arch/x86/kernel/kprobes/{core,opt}.c
    (User.KPROBE, "kernel/kprobes.c"): (
        "alloc_insn_page free_insn_page __get_insn_slot __free_insn_slot collect_garbage_slots collect_one_slot "
        "kprobe_optimizer do_free_cleaned_kprobes arch_prepare_kprobe arch_prepare_optimized_kprobe arch_remove_kprobe "
        "kprobe_optimizer_thread arch_remove_optimized_kprobe create_local_trace_kprobe destroy_local_trace_kprobe "
        "register_kprobe register_kprobes register_kretprobe register_kretprobes __register_kprobe unregister_kprobe "
        "unregister_kprobes unregister_kretprobe unregister_kretprobes arm_kprobe disarm_kprobe enable_kprobe "
        "disable_kprobe __unregister_kprobe_top __unregister_kprobe_bottom"
    ),
    # kernel/trace/ftrace.c, arch/x86/kernel/ftrace.c
    (User.FTRACE, "kernel/trace/ftrace.c"): (
        "arch_ftrace_update_trampoline arch_ftrace_trampoline_free create_trampoline alloc_tramp tramp_free "
        "ftrace_update_trampoline ftrace_startup ftrace_shutdown register_ftrace_function unregister_ftrace_function "
        "register_ftrace_function_nolock register_ftrace_direct unregister_ftrace_direct register_ftrace_direct_multi "
        "unregister_ftrace_direct_multi modify_ftrace_direct modify_ftrace_direct_multi ftrace_ops_test"
    ),
    # mm/secretmem.c; secretmem_freepage to 5.19
    (User.SECRETMEM, "mm/secretmem.c"): (
        "secretmem_fault secretmem_free_folio secretmem_freepage secretmem_migrate_folio secretmem_setattr"
    ),
}

SYMBOLS: dict[str, User] = {name: user for (user, _), names in _BY_SOURCE.items() for name in names.split()}
"""Symbol -> whose it is. Each stands under the source file that defines it, above."""
