// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Splits of large entries as they are done. Every split ends in one flush of the whole TLB, at which moment the smaller
// entries stand in the page tables (arch/x86/mm/pat/set_memory.c, __split_large_page: flush_tlb_all), and a task inside
// the choke point calls it for nothing else, with one exception: the reclaim of a split's own allocation may run another
// user's change (TTM's shrinker), whose cpa_flush flushes too while the outer entry is still whole. That one is told by its
// stack: a split's flush is called straight from the choke point, whose callees are inlined into it.
//
// FLUSH_BEGIN FLUSH_END CHOKE_BEGIN CHOKE_END: where the two functions lie.

#define FLUSH_FRAMES 12
#define FRAMES_BETWEEN 4	// should a compiler leave the functions in between out of line

// Splits that the kprobe reported, and those of them that fentry then met: the rest fentry did not see.
BPF_PERCPU_ARRAY(splits_by_kprobe, u64, 2);

static __always_inline void count_split(u32 which)
{
	u64 *n = splits_by_kprobe.lookup(&which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline bool is_split(void *ctx)
{
	u64 ip[FLUSH_FRAMES] = {};
	int i, left = 0;

	if (walk_stack(ctx, ip, sizeof(ip)) < 0)
		return true;
#pragma unroll
	for (i = 0; i < FLUSH_FRAMES; i++) {
		if (left && ip[i] >= CHOKE_BEGIN && ip[i] < CHOKE_END)
			return true;
		if (left)
			left--;
		if (ip[i] >= FLUSH_BEGIN && ip[i] < FLUSH_END)
			left = FRAMES_BETWEEN;
	}
	return false;
}

static __always_inline int split_done(void *ctx, u8 by)
{
	struct task *task = this_task();
	struct call_key key = {.tid = (u32)bpf_get_current_pid_tgid()};
	struct split_record *record;
	u64 at, page, entry, slot;
	struct call *call;
	u8 level;

	if (!task || !task->depth)
		return 0;
	key.cpa = task->cpa;
	call = calls.lookup(&key);
	if (!call)
		return 0;
	page = read64(key.cpa + CPA_CURPAGE_OFFSET);
	at = call->pages ? array_address(call->pages, page) : call->address + page * 4096;
	level = walk(at, &entry, &slot);
	if (level == 3)		// what a split leaves is smaller
		return 0;
	if (by == BY_FENTRY && call->split_seen == (at | level)) {
		call->split_seen = 0;
		count_split(1);
		return 0;
	}
	if (!is_split(ctx))
		return 0;
	if (by == BY_KPROBE) {
		call->split_seen = at | level;
		count_split(0);
	}
	record = split_ring.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOST_SPLIT);
		return 0;
	}
	record->ts = bpf_ktime_get_ns();
	record->call_id = call->call_id;
	record->address = at;
	record->entry = entry;
	record->pid = bpf_get_current_pid_tgid();
	record->cpu = bpf_get_smp_processor_id();
	record->level = level;
	record->pad[0] = 0;
	split_ring.ringbuf_submit(record, NO_WAKEUP);
	return 0;
}

int kprobe_split(unsigned long long *ctx)
{
	return is_armed() ? split_done(ctx, BY_KPROBE) : 0;
}
