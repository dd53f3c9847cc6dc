// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Changes of the direct map, at the choke point __change_page_attr_set_clr (arch/x86/mm/pat/set_memory.c). The
// function calls itself for the direct map's alias of a vmalloc address, so nested calls are the rule; a second primary
// call nested in the reclaim of a split's allocation is possible. Hence a key of task and cpa pointer.
//
// Where the kernel preempts, an fentry program is skipped while a preempted task is inside it on the same CPU, and a
// kprobe program while a preempted task is inside a map's system call. So both are attached, and whichever comes first
// does the work. The order is kprobe, fentry, the function, fexit, kretprobe; only if both of a pair were skipped is
// something lost, and then the other pair tells.

struct call_key {
	u64 tid, cpa;
};

struct call {
	u64 ts, call_id, parent_id, address, n_pages, mask_set, mask_clr, entry_before, pages;
	u64 parent_cpa, sp, split_seen;
	u32 flags;
	u8 depth, bits, has_pgd, check_alias, level_before, seen_by;
	u8 pad[6];
};

BPF_HASH(calls, struct call_key, struct call, 16384);

// 65,536 pages, a buffer of 256 MB; the rest of a longer array is counted as lost.
#define MAX_ARRAY_CHUNKS 1024

static __always_inline u64 read64(u64 at)
{
	u64 value = 0;

	bpf_probe_read_kernel(&value, 8, (void *)at);
	return value;
}

static __always_inline u32 read32(u64 at)
{
	u32 value = 0;

	bpf_probe_read_kernel(&value, 4, (void *)at);
	return value;
}

static __always_inline u64 array_address(u64 pages, u64 i)
{
	return PAGE_OFFSET_BASE + (frame_of(read64(pages + i * 8)) << 12);
}

static __always_inline void emit_array(u64 call_id, u64 pages, u64 n_pages)
{
	u64 i, at;

	for (i = 0; i < MAX_ARRAY_CHUNKS; i++) {
		struct array_record *record;

		if (i * CHUNK >= n_pages)
			return;
		record = array_ring.ringbuf_reserve(sizeof(*record));
		if (!record) {
			lose(LOST_ARRAY);
			return;
		}
		record->call_id = call_id;
		record->chunk = i;
		at = pages + i * CHUNK * 8;
		// The last chunk may run past the array into memory that is not mapped: then up to the next 512 bytes,
		// beyond which no page begins. (The size must not depend on n_pages: the verifier would follow every path.)
		if (bpf_probe_read_kernel(record->page, sizeof(record->page), (void *)at) < 0)
			bpf_probe_read_kernel(record->page, -at & (sizeof(record->page) - 1), (void *)at);
		array_ring.ringbuf_submit(record, NO_WAKEUP);
	}
	lose(LOST_ARRAY);
}

// Calls that fentry did not see, counted at their exit.
BPF_PERCPU_ARRAY(kprobe_only, u64, 1);

static __always_inline int change_entry(u64 cpa, u32 check_alias, u8 by, u64 sp)
{
	u64 ids = bpf_get_current_pid_tgid(), vaddr, slot;
	struct call_key key = {.tid = (u32)ids, .cpa = cpa};
	struct call call = {}, *seen = calls.lookup(&key);
	struct task *task;

	if (by == BY_FENTRY && seen && !(seen->seen_by & BY_FENTRY)) {
		seen->seen_by |= BY_FENTRY;
		return 0;
	}
	// A call of that key that never returned, else: its exit was missed, and is counted when it is overwritten.
	if (seen)
		lose(LOST_EXIT);
	task = enter_task();
	call.seen_by = by;
	call.sp = sp;
	call.ts = bpf_ktime_get_ns();
	call.call_id = new_id(call.ts);
	vaddr = read64(cpa + CPA_VADDR_OFFSET);
	call.has_pgd = read64(cpa + CPA_PGD_OFFSET) != 0;
	call.mask_set = read64(cpa + CPA_MASK_SET_OFFSET);
	call.mask_clr = read64(cpa + CPA_MASK_CLR_OFFSET);
	call.n_pages = read64(cpa + CPA_NUMPAGES_OFFSET);
	call.flags = read32(cpa + CPA_FLAGS_OFFSET);
	call.bits = read32(cpa + CPA_BITS_OFFSET);
	call.check_alias = check_alias;
	if (call.flags & CPA_PAGES_ARRAY) {
		call.pages = read64(cpa + CPA_PAGES_OFFSET);
		call.address = array_address(call.pages, 0);
	} else {
		call.address = read64(vaddr) | 1ULL << 63;	// machine check decoys have bit 63 flipped
	}
	call.level_before = walk(call.address, &call.entry_before, &slot);
	if (task) {
		call.parent_id = task->call_id;
		call.depth = task->depth;
		call.parent_cpa = task->cpa;
		task->call_id = call.call_id;
		task->cpa = cpa;
		task->depth++;
	}
	if (calls.update(&key, &call))
		lose(LOST_CALL);
	if (call.flags & CPA_PAGES_ARRAY)
		emit_array(call.call_id, call.pages, call.n_pages);
	return 0;
}

// The record of a call that returns, sent; what stands in the page tables now is looked up for its first page and for the
// last of `n_done`. False where there was no room.
static __always_inline bool emit_change(struct call *call, u8 kind, u64 stack_key, u64 n_done, s32 ret)
{
	struct change_record *record = change_ring.ringbuf_reserve(sizeof(*record));
	u64 ids = bpf_get_current_pid_tgid(), last = n_done ? n_done - 1 : 0, slot;

	if (!record) {
		lose(LOST_CHANGE);
		return false;
	}
	record->ts = call->ts;
	record->call_id = call->call_id;
	record->parent_id = call->parent_id;
	record->stack_key = stack_key;
	record->address = call->address;
	record->n_pages = call->n_pages;
	record->n_done = n_done;
	record->mask_set = call->mask_set;
	record->mask_clr = call->mask_clr;
	record->entry_before = call->entry_before;
	record->level_before = call->level_before;
	record->pid = ids;
	record->tgid = ids >> 32;
	record->flags = call->flags;
	record->ret = ret;
	record->cpu = bpf_get_smp_processor_id();
	record->depth = call->depth;
	record->bits = call->bits;
	record->has_pgd = call->has_pgd;
	record->check_alias = call->check_alias;
	record->kind = kind;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	record->level_first = walk(call->address, &record->entry_first, &slot);
	if (!last) {
		record->level_last = record->level_first;
		record->entry_last = record->entry_first;
	} else {
		u64 at = call->pages ? array_address(call->pages, last) : call->address + last * 4096;

		record->level_last = walk(at, &record->entry_last, &slot);
	}
	record->end = bpf_ktime_get_ns();
	change_ring.ringbuf_submit(record, NO_WAKEUP);
	return true;
}

static __always_inline int change_exit(void *ctx, u64 cpa, s32 ret)
{
	struct call_key key = {.tid = (u32)bpf_get_current_pid_tgid(), .cpa = cpa};
	struct call *call = calls.lookup(&key);
	u64 pfn, stack_key = 0;
	struct task *task;
	u8 depth;

	if (!call) {
		lose(LOST_ENTRY);
		return 0;
	}
	if (call->seen_by == BY_KPROBE) {
		u32 zero = 0;
		u64 *n = kprobe_only.lookup(&zero);

		if (n)
			__sync_fetch_and_add(n, 1);
	}
	depth = call->depth;
	task = this_task();
	if (task) {
		task->call_id = call->parent_id;
		task->cpa = call->parent_cpa;
		task->depth = depth;
	}
	// Before the change itself: whoever reads a change from its ring finds the stack in the other. A nested call has
	// its parent's stack, unless it is a primary call of another user's, nested in the reclaim of a split's allocation:
	// an alias call never checks aliases in its turn (cpa_process_alias passes 0).
	if (!depth || call->check_alias)
		stack_key = emit_stack(ctx);
	pfn = (call->address - PAGE_OFFSET_BASE) >> 12;
	if (emit_change(call, KIND_CHANGE_CPA, stack_key, read64(cpa + CPA_CURPAGE_OFFSET), ret) && !depth && task &&
	    top_scope(task) == KIND_SECRET_PAGE && !ret) {
		if (call->mask_clr & 1)
			secret_page_alloc(top_region(task), pfn, stack_key);
		else if (call->mask_set & 1)
			secret_page_free(ctx, pfn);
	}
	// Last, so that whoever finds no running call in the map finds its record in the ring.
	calls.delete(&key);
	if (task)
		leave_task(task);
	return 0;
}

// Registers of struct pt_regs (arch/x86/include/uapi/asm/ptrace.h), in words: nothing of the headers is needed.
#define REG_AX 10
#define REG_SI 13
#define REG_DI 14
#define REG_SP 19

int kprobe_change_entry(unsigned long long *ctx)
{
	return is_armed() ? change_entry(ctx[REG_DI], ctx[REG_SI], BY_KPROBE, ctx[REG_SP]) : 0;
}

// The call that returns is told by its place on the stack: if fexit has ended it, the innermost call of this task is
// another, whose frame lies higher up.
#define SAME_FRAME 64

int kretprobe_change_exit(unsigned long long *ctx)
{
	u64 ids = bpf_get_current_pid_tgid();
	struct call_key key = {.tid = (u32)ids};
	struct task *task = this_task();
	struct call *call;

	if (!is_armed() || !task || !task->depth)
		return 0;
	key.cpa = task->cpa;
	call = calls.lookup(&key);
	if (!call || ctx[REG_SP] + SAME_FRAME / 2 - call->sp > SAME_FRAME)
		return 0;
	return change_exit(ctx, key.cpa, ctx[REG_AX]);
}
