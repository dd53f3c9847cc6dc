// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// What changes the direct map past the choke point: large entries put back (collapse_large_pages,
// arch/x86/mm/pat/set_memory.c, since 6.15) and memory that comes and goes (arch_add_memory and arch_remove_memory,
// arch/x86/mm/init_64.c). Their records are changes like any other, of another kind; while they run they stand among the
// running calls, under their kind in place of a cpa pointer.

static __always_inline int writer_entry(u8 kind, u64 address, u64 n_pages)
{
	struct call_key key = {.tid = (u32)bpf_get_current_pid_tgid(), .cpa = kind};
	struct call call = {};
	u64 slot;

	if (calls.lookup(&key))
		lose(LOST_EXIT);
	call.ts = bpf_ktime_get_ns();
	call.call_id = new_id(call.ts);
	call.address = address;
	call.n_pages = n_pages;
	call.level_before = walk(address, &call.entry_before, &slot);
	if (calls.update(&key, &call))
		lose(LOST_CALL);
	return 0;
}

// `happened`: whether there is anything to record.
static __always_inline int writer_exit(void *ctx, u8 kind, s32 ret, int happened)
{
	struct call_key key = {.tid = (u32)bpf_get_current_pid_tgid(), .cpa = kind};
	struct call *call = calls.lookup(&key);

	if (!call) {
		lose(LOST_ENTRY);
		return 0;
	}
	if (happened)
		emit_change(call, kind, emit_stack(ctx), call->n_pages, ret);
	calls.delete(&key);
	return 0;
}

// One 2M step of a range; the address of a pages array's step may lie anywhere in it.
static __always_inline int collapse_entry(u64 address)
{
	return writer_entry(KIND_CHANGE_COLLAPSE, (address & ~(HUGE_SIZE - 1)) | 1ULL << 63, 512);
}

static __always_inline int hotplug_entry(u8 kind, u64 start, u64 n_bytes)
{
	return writer_entry(kind, PAGE_OFFSET_BASE + start, n_bytes >> 12);
}
