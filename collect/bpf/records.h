// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Records as they lie in the ring buffers, the maps that every program shares, and the counting of losses.
// Each ring holds records of one size, so that user space reads it as one strided array; collect/records.py mirrors
// these structs field by field and compares the sizes at start.
//
// Constants that Python passes in (-D), read from this kernel: TOP_PGT PAGE_OFFSET_BASE VMEMMAP_BASE PHYS_MASK LEVELS,
// the offsets of struct members (…_OFFSET), the codes of collect/schema.py (KIND_… TIER_… EVENT_…), sizes of rings.

// User space looks at the rings by itself; waking it up would cost an interrupt to oneself for each record.
#define NO_WAKEUP BPF_RB_NO_WAKEUP

#define STACK_FRAMES 32
#define CHUNK 64

// Classes of loss; collect/records.py names them in this order.
enum loss {
	LOST_CHANGE,		// no room in the ring of changes
	LOST_STACK,		// no room in the ring of stacks, or the kernel could not walk the stack
	LOST_ARRAY,		// no room for a chunk of a pages array, or the array too long
	LOST_REGION,
	LOST_FRAMES,		// no room for a chunk of a region's page table entries, or the region too long
	LOST_PAGE,
	LOST_CALL,		// no room in the map of running calls
	LOST_ENTRY,		// a return whose entry was not seen
	LOST_EXIT,		// an entry whose return was not seen
	LOST_TASK,		// no room in the map of tasks, or scopes nested too deep
	LOST_SCOPE,		// no room in the map of secret pages or live regions
	LOST_BULK,		// a bulk allocation that could not be followed: no room, or too many pages
	LOST_SPLIT,		// no room in the ring of splits
	N_LOSSES
};

struct change_record {
	u64 ts, end, call_id, parent_id, stack_key;
	u64 address, n_pages, n_done, mask_set, mask_clr;
	u64 entry_before, entry_first, entry_last;
	u32 pid, tgid, flags;
	s32 ret;
	u16 cpu;
	u8 depth, bits, has_pgd, check_alias, level_before, level_first, level_last, kind;
	u8 pad[6];
	char comm[16];
};

struct split_record {
	u64 ts, call_id, address, entry;
	u32 pid;
	u16 cpu;
	u8 level;
	u8 pad[1];
};

struct stack_record {
	u64 key;
	s64 n_bytes;
	u64 ip[STACK_FRAMES];
};

struct array_record {
	u64 call_id, chunk;
	u64 page[CHUNK];
};

struct region_record {
	u64 ts, region_id, parent_id, stack_key, address, n_bytes, entry;
	u32 pid, tgid;
	u16 cpu;
	u8 event, tier, kind, map_level;
	u8 pad[2];
	char comm[16];
	char name[56];
};

struct frames_record {
	u64 region_id, address, level;
	u64 pte[CHUNK];
};

struct page_record {
	u64 ts, pfn, region_id;
	u32 gfp, pid;
	u16 cpu;
	u8 event, order, migratetype, scope;
	u8 pad[2];
};

BPF_RINGBUF_OUTPUT(change_ring, CHANGE_RING_PAGES);
BPF_RINGBUF_OUTPUT(split_ring, SPLIT_RING_PAGES);
BPF_RINGBUF_OUTPUT(stack_ring, STACK_RING_PAGES);
BPF_RINGBUF_OUTPUT(array_ring, ARRAY_RING_PAGES);
BPF_RINGBUF_OUTPUT(region_ring, REGION_RING_PAGES);
BPF_RINGBUF_OUTPUT(frames_ring, FRAMES_RING_PAGES);
BPF_RINGBUF_OUTPUT(page_ring, PAGE_RING_PAGES);

BPF_PERCPU_ARRAY(losses, u64, N_LOSSES);

// Attaching one program after another would show calls without their entries: all stay silent until user space arms them.
BPF_ARRAY(armed, u32, 1);

static __always_inline int is_armed(void)
{
	u32 zero = 0, *flag = armed.lookup(&zero);

	return flag && *flag;
}

static __always_inline void lose(u32 class)
{
	u64 *n = losses.lookup(&class);

	if (n)
		__sync_fetch_and_add(n, 1);
}

// Unique without a counter that a preempting task could read twice: no two entries on one CPU share a nanosecond.
static __always_inline u64 new_id(u64 ts)
{
	return ts << 10 | (bpf_get_smp_processor_id() & 1023);
}

// What a task is in the middle of: a call at the choke point, and the allocations or frees of regions around it.
#define SCOPES 4

struct task {
	u64 call_id;
	u64 region_id[SCOPES];
	u64 size[SCOPES];	// bytes asked for at that scope
	u64 prog;		// struct bpf_prog being compiled
	u64 cpa;		// of the innermost call
	u32 n_scopes;
	u32 depth;
	u8 kind[SCOPES];
};

BPF_HASH(tasks, u32, struct task, 16384);

// How many there are, so that the programs that run for every page of the machine need not look them up one by one.
// Never too few: counted when an entry is made, and discounted when one is taken out.
struct live {
	u64 n_tasks, n_secret, n_bulk;
};

BPF_ARRAY(lives, struct live, 1);

static __always_inline struct task *this_task(void)
{
	u32 tid = bpf_get_current_pid_tgid();

	return tasks.lookup(&tid);
}

// The task that is inside a region's allocation or free, or a change, if any is. Asked for each page of the machine: the
// hash is looked at only while some task is in it.
static __always_inline struct task *task_in_scope(void)
{
	u32 zero = 0;
	struct live *live = lives.lookup(&zero);

	return live && live->n_tasks ? this_task() : 0;
}

static __always_inline struct task *enter_task(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct task *task = tasks.lookup(&tid);

	if (!task) {
		struct task fresh = {};
		u32 zero = 0;
		struct live *live = lives.lookup(&zero);

		if (!tasks.insert(&tid, &fresh) && live)
			__sync_fetch_and_add(&live->n_tasks, 1);
		task = tasks.lookup(&tid);
		if (!task)
			lose(LOST_TASK);
	}
	return task;
}

static __always_inline void leave_task(struct task *task)
{
	u32 tid = bpf_get_current_pid_tgid(), zero = 0;
	struct live *live = lives.lookup(&zero);

	if (!task->depth && !task->n_scopes && !task->prog && !tasks.delete(&tid) && live)
		__sync_fetch_and_add(&live->n_tasks, -1);
}

// The kernel's bpf_preempt_disable and bpf_preempt_enable, or nothing where it lacks them: collect/kernel_calls.py.
static void (*preempt_disable)(void) = (void *)0x646d0001;
static void (*preempt_enable)(void) = (void *)0x646d0002;

// The calling stack; negative where the kernel could not walk it. It walks one at a time on a CPU and context
// (kernel/events/callchain.c, get_recursion_context): whoever is preempted meanwhile lets everybody else there fail
// until it runs again, so nobody is.
static __always_inline int walk_stack(void *ctx, u64 *ip, u32 n_bytes)
{
	int got;

	preempt_disable();
	got = bpf_get_stack(ctx, ip, n_bytes, 0);
	preempt_enable();
	return got;
}

// Sends the stack under a fresh key, which is returned; 0 where there was no room.
static __always_inline u64 emit_stack(void *ctx)
{
	struct stack_record *record = stack_ring.ringbuf_reserve(sizeof(*record));
	u64 key;

	if (!record) {
		lose(LOST_STACK);
		return 0;
	}
	record->key = key = new_id(bpf_ktime_get_ns());
	record->n_bytes = walk_stack(ctx, record->ip, sizeof(record->ip));
	if (record->n_bytes < 0)
		lose(LOST_STACK);
	stack_ring.ringbuf_submit(record, NO_WAKEUP);
	return key;
}

// The leaf entry that maps `address` in the kernel's own page tables, and where it stands. A non-zero, non-present
// entry above the last level is a leaf too (arch/x86/mm/pat/set_memory.c, lookup_address_in_pgd_attr).
static __always_inline u8 walk(u64 address, u64 *entry, u64 *slot)
{
	u64 at = TOP_PGT, e = 0;

	*entry = 0;
	*slot = 0;
#if LEVELS == 5
	at += ((address >> 48) & 511) * 8;
	bpf_probe_read_kernel(&e, 8, (void *)at);
	if (!(e & 1))
		return 0;
	at = PAGE_OFFSET_BASE + (e & PHYS_MASK);
	e = 0;
#endif
	at += ((address >> 39) & 511) * 8;
	bpf_probe_read_kernel(&e, 8, (void *)at);
	if (!(e & 1))
		return 0;
	at = PAGE_OFFSET_BASE + (e & PHYS_MASK) + ((address >> 30) & 511) * 8;
	e = 0;
	bpf_probe_read_kernel(&e, 8, (void *)at);
	*entry = e;
	*slot = at;
	if (!e)
		return 0;
	if (!(e & 1) || e & 0x80)
		return 3;
	at = PAGE_OFFSET_BASE + (e & PHYS_MASK) + ((address >> 21) & 511) * 8;
	e = 0;
	bpf_probe_read_kernel(&e, 8, (void *)at);
	*entry = e;
	*slot = at;
	if (!e)
		return 0;
	if (!(e & 1) || e & 0x80)
		return 2;
	at = PAGE_OFFSET_BASE + (e & PHYS_MASK) + ((address >> 12) & 511) * 8;
	e = 0;
	bpf_probe_read_kernel(&e, 8, (void *)at);
	*entry = e;
	*slot = at;
	return e ? 1 : 0;
}

// struct page, 64 bytes in every Debian kernel from 5.10 to 7.3; collect/probes.py checks it.
static __always_inline u64 frame_of(u64 page)
{
	return (page - VMEMMAP_BASE) >> 6;
}
