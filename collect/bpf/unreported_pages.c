// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Page allocations that the tracepoint mm_page_alloc does not report, and split_page, after which the pages of one allocation
// are freed one by one. For recordings of all page events.

// alloc_pages_bulk* fills the empty places of an array from the per-CPU lists, without the tracepoint, and takes one page
// through the usual path, with it, where the lists give none (mm/page_alloc.c, __alloc_pages_bulk). So what was in the
// array before the call, and which pages the tracepoint reported inside it, is remembered until it returns.
#define BULK_PAGES 1024
#define BULK_REPORTED 4

struct bulk_call {
	u64 array, n;
	u64 reported[BULK_REPORTED];
	u32 n_reported, gfp;
	u64 before[BULK_PAGES];
};

struct bulk_record {
	u64 ts, region_id;
	u32 gfp, pid, cpu, n;
	u32 scope, pad;
	u64 reported[BULK_REPORTED];
	u64 before[CHUNK], after[CHUNK];
};

BPF_RINGBUF_OUTPUT(bulk_ring, BULK_RING_PAGES);
BPF_HASH(bulk_calls, u64, struct bulk_call, 256);
// One value to begin a call with: it is too large for the stack.
BPF_PERCPU_ARRAY(bulk_blank, struct bulk_call, 1);

// The idle tasks of all CPUs share tid 0, and refill the pools of network drivers from their softirqs.
static __always_inline u64 bulk_key(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	return tid ? tid : 1ULL << 32 | bpf_get_smp_processor_id();
}

// Bytes of `n` places, in a register whose bounds the verifier sees: the compiler must not take it apart.
static __always_inline u64 bulk_bytes(u64 n)
{
	u64 n_bytes = n * 8;

	asm volatile("" : "+r"(n_bytes));
	n_bytes &= 2 * BULK_PAGES * 8 - 1;
	return n_bytes <= BULK_PAGES * 8 ? n_bytes : BULK_PAGES * 8;
}

static __always_inline void bulk_entry(u64 gfp, u64 n, u64 list, u64 array)
{
	u64 key = bulk_key();
	u32 zero = 0;
	struct bulk_call *call = bulk_blank.lookup(&zero), *was;
	struct live *live = lives.lookup(&zero);

	if (list)		// 5.13 to 6.13 could fill a list instead; nothing in the kernel asks for it
		lose(LOST_BULK);
	if (!call || !live || !array)
		return;
	if (n > BULK_PAGES) {
		lose(LOST_BULK);
		return;
	}
	was = bulk_calls.lookup(&key);
	if (was)		// a softirq's call inside a task's, or one whose return was not seen
		lose(LOST_BULK);
	else
		__sync_fetch_and_add(&live->n_bulk, 1);
	if (bulk_calls.update(&key, call)) {
		lose(LOST_BULK);
		return;
	}
	call = bulk_calls.lookup(&key);
	if (!call)
		return;
	call->array = array;
	call->n = n;
	call->gfp = gfp;
	call->n_reported = 0;
	bpf_probe_read_kernel(call->before, bulk_bytes(n), (void *)array);
}

// Called for each page that the tracepoint reports while some task is in a bulk allocation.
static __always_inline void bulk_reported(u64 page)
{
	u64 key = bulk_key();
	struct bulk_call *call = bulk_calls.lookup(&key);
	u32 at;

	if (!call)
		return;
	at = call->n_reported & (BULK_REPORTED - 1);
	call->reported[at] = page;
	call->n_reported = at + 1;
}

// What the array held before and holds now, 64 places at a time: which of the pages are new, and were not reported, is for
// user space to find out (the verifier follows no loop of so many branches).
static __always_inline void bulk_exit(u64 array)
{
	u64 key = bulk_key();
	u32 zero = 0, i;
	struct bulk_call *call = bulk_calls.lookup(&key);
	struct live *live = lives.lookup(&zero);
	struct bulk_record *record;
	struct task *task = task_in_scope();
	u32 scope = task ? top_scope(task) : 0;

	if (!call || call->array != array)
		return;
	if (scope == SCOPE_FREE || scope == SCOPE_FREE_BLOCK)
		scope = 0;
	for (i = 0; i < BULK_PAGES / CHUNK; i++) {
		if (i * CHUNK >= call->n)
			break;
		record = bulk_ring.ringbuf_reserve(sizeof(*record));
		if (!record) {
			lose(LOST_BULK);
			break;
		}
		record->ts = bpf_ktime_get_ns();
		record->scope = scope;
		record->pad = 0;
		record->region_id = scope ? top_region(task) : 0;
		record->gfp = call->gfp;
		record->pid = bpf_get_current_pid_tgid();
		record->cpu = bpf_get_smp_processor_id();
		record->n = call->n - i * CHUNK;
		__builtin_memcpy(record->reported, call->reported, sizeof(record->reported));
		bpf_probe_read_kernel(record->before, sizeof(record->before), &call->before[i * CHUNK]);
		if (bpf_probe_read_kernel(record->after, sizeof(record->after), (void *)(call->array + i * CHUNK * 8)))
			bpf_probe_read_kernel(record->after, bulk_bytes(record->n) & (sizeof(record->after) - 1),
					      (void *)(call->array + i * CHUNK * 8));
		bulk_ring.ringbuf_submit(record, NO_WAKEUP);
	}
	if (!bulk_calls.delete(&key) && live)
		__sync_fetch_and_add(&live->n_bulk, -1);
}

// alloc_contig_range takes a range of page frames out of the free lists. Its length goes where gfp would be; user space
// makes rows of it, one for each aligned block.
static __always_inline void contig_exit(u64 first, u64 end, s32 ret)
{
	if (!ret && end > first)
		emit_page(EVENT_PAGE_ALLOC_CONTIG, first, 0, end - first, 0, 0, 0);
}

// split_page(struct page *page, unsigned int order)
static __always_inline void page_split(u64 page, u32 order)
{
	emit_page(EVENT_PAGE_SPLIT, frame_of(page), order, 0, 0, 0, 0);
}
