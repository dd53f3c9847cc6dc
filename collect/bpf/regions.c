// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Regions: executable and secret memory, what was asked for and what backs it, from allocation to free.
// collect/probes.py writes the fentry and fexit stubs that call these, for the functions this kernel has.

// Address with the class in its low bits (all addresses here are aligned to 64 bytes) -> the live region there.
// The classes keep an image apart from the pack that begins at the same address.
#define CLASS_ASKED 0
#define CLASS_BACKING 1
#define CLASS_BLOCK 2
#define CLASS_MODULE 3

BPF_HASH(live_regions, u64, u64, 262144);
BPF_HASH(secret_pfns, u64, u64, 262144);

// An fentry or fexit program is skipped while a preempted task is inside it on the same CPU (see collect/bpf/changes.c).
// So a kprobe stands before it and a kretprobe behind it, and whichever comes first does the work: the second finds what
// the first has left here. None of the functions calls itself.
#define BY_KPROBE 1
#define BY_FENTRY 2

struct seen_key {
	u32 tid, function;
};

BPF_HASH(entered, struct seen_key, u8, 16384);

// Entries that a kprobe saw, those of them that fentry met then, and exits that a kretprobe had to take.
BPF_PERCPU_ARRAY(region_spares, u64, 3);

static __always_inline void count_spare(u32 which)
{
	u64 *n = region_spares.lookup(&which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

static __always_inline int first_at_entry(u32 function, u8 by, int has_exit)
{
	struct seen_key key = {.tid = (u32)bpf_get_current_pid_tgid(), .function = function};
	u8 *seen = entered.lookup(&key);

	if (by == BY_KPROBE) {
		count_spare(0);
	} else if (seen && *seen == BY_KPROBE) {
		count_spare(1);
		if (has_exit)
			*seen = BY_KPROBE | BY_FENTRY;
		else
			entered.delete(&key);
		return 0;
	} else if (!has_exit) {
		return 1;
	}
	entered.update(&key, &by);
	return 1;
}

static __always_inline int first_at_exit(u32 function, u8 by)
{
	struct seen_key key = {.tid = (u32)bpf_get_current_pid_tgid(), .function = function};

	if (!entered.lookup(&key))
		return by == BY_FENTRY;
	entered.delete(&key);
	if (by == BY_KPROBE)
		count_spare(2);
	return 1;
}

#define MAX_CHUNKS 128
#define HUGE_SIZE (2ULL << 20)

// An index that the verifier sees bounded: the compiler, which knows it to be, must not drop the mask.
static __always_inline u32 scope_index(u32 n)
{
	asm volatile("" : "+r"(n));
	return n & (SCOPES - 1);
}

static __always_inline u8 top_scope(struct task *task)
{
	u32 n = task->n_scopes;

	return n && n <= SCOPES ? task->kind[scope_index(n - 1)] : 0;
}

static __always_inline u64 top_region(struct task *task)
{
	u32 n = task->n_scopes;

	return n && n <= SCOPES ? task->region_id[scope_index(n - 1)] : 0;
}

static __always_inline u64 top_size(void)
{
	struct task *task = this_task();
	u32 n = task ? task->n_scopes : 0;

	return n && n <= SCOPES ? task->size[scope_index(n - 1)] : 0;
}

static __always_inline void enter_scope(u8 kind, u64 region_id, u64 size)
{
	struct task *task = enter_task();
	u32 n;

	if (!task)
		return;
	n = task->n_scopes;
	task->n_scopes = n + 1;
	if (n >= SCOPES) {
		lose(LOST_TASK);
		return;
	}
	task->kind[scope_index(n)] = kind;
	task->region_id[scope_index(n)] = region_id;
	task->size[scope_index(n)] = size;
}

// Leaves the innermost scope; its region id, or 0 where the entry was not seen. Gives the scope around it.
static __always_inline u64 leave_scope(u8 kind, u64 *parent_id, u64 *parent_size, u8 *parent_kind)
{
	struct task *task = this_task();
	u64 id = 0;
	u32 n;

	*parent_id = *parent_size = 0;
	*parent_kind = 0;
	if (!task || !task->n_scopes)
		return 0;
	n = task->n_scopes - 1;
	task->n_scopes = n;
	if (n < SCOPES && task->kind[scope_index(n)] == kind) {
		id = task->region_id[scope_index(n)];
		if (n) {
			*parent_id = task->region_id[scope_index(n - 1)];
			*parent_size = task->size[scope_index(n - 1)];
			*parent_kind = task->kind[scope_index(n - 1)];
		}
	}
	leave_task(task);
	return id;
}

static __always_inline void fill_region(struct region_record *record, u64 region_id, u64 parent_id, u64 stack_key,
					u64 address, u64 n_bytes, u8 event, u8 tier, u8 kind)
{
	u64 ids = bpf_get_current_pid_tgid();

	__builtin_memset(record, 0, sizeof(*record));
	record->ts = bpf_ktime_get_ns();
	record->stack_key = stack_key;
	record->region_id = region_id;
	record->parent_id = parent_id;
	record->address = address;
	record->n_bytes = n_bytes;
	record->pid = ids;
	record->tgid = ids >> 32;
	record->cpu = bpf_get_smp_processor_id();
	record->event = event;
	record->tier = tier;
	record->kind = kind;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
}

// The leaf entries behind a region, 64 at a time, or one large leaf.
static __always_inline void emit_frames(u64 region_id, u64 address, u64 n_bytes)
{
	u64 at = address & ~(u64)(CHUNK * 4096 - 1), end = address + n_bytes;
	int i;

	for (i = 0; i < MAX_CHUNKS; i++) {
		struct frames_record *record;
		u64 probe = at < address ? address : at, entry, slot;
		u8 level;

		if (at >= end)
			return;
		record = frames_ring.ringbuf_reserve(sizeof(*record));
		if (!record) {
			lose(LOST_FRAMES);
			return;
		}
		// Once in hundreds a walk on an emulated 5.10 found nothing where the next one did: look again, and count it.
		level = walk(probe, &entry, &slot);
		if (!level)
			level = walk(probe, &entry, &slot);
		if (!level)
			lose(LOST_FRAMES);
		record->region_id = region_id;
		record->address = at;
		record->level = level;
		if (level == 1) {
			slot = (slot & ~4095ULL) + ((at >> 12) & 511) * 8;
			bpf_probe_read_kernel(record->pte, sizeof(record->pte), (void *)slot);
			at += CHUNK * 4096;
		} else {
			record->pte[0] = entry;
			record->address = at = at & ~(HUGE_SIZE - 1);
			at += HUGE_SIZE;
		}
		frames_ring.ringbuf_submit(record, NO_WAKEUP);
	}
	if (at < end)
		lose(LOST_FRAMES);
}

// An area that backs more than what was asked for around it, in whole 2M blocks, is a pack or a block that later requests
// will share; one of the same size is the area around it once more (execmem_alloc's own vmalloc).
static __always_inline int is_shared_block(u64 n_bytes, u64 parent_size)
{
	return parent_size && n_bytes > parent_size + 4096 && n_bytes >= HUGE_SIZE;
}

static __always_inline void region_alloc_enter(u8 kind, u64 size)
{
	struct task *task = this_task();
	u64 id = new_id(bpf_ktime_get_ns()), parent_size = 0;
	u32 n = task ? task->n_scopes : 0;

	if (kind == KIND_EXECMEM && n && n <= SCOPES && top_scope(task) == KIND_EXECMEM) {
		parent_size = task->size[scope_index(n - 1)];
		if (!is_shared_block(size, parent_size))
			id = top_region(task);
	}
	enter_scope(kind, id, size);
}

static __always_inline void region_alloc_exit(void *ctx, u8 tier, u8 kind, u64 address, u64 n_bytes)
{
	u64 parent_id, parent_size, id, key, slot, stack_key;
	struct region_record *record;
	u8 parent_kind, class = tier == TIER_ASKED ? CLASS_ASKED : CLASS_BACKING;

	id = leave_scope(kind, &parent_id, &parent_size, &parent_kind);
	// An error pointer (-4095..-1) or NULL
	if (!address || address >= (u64)-4095)
		return;
	if (!id)
		id = new_id(bpf_ktime_get_ns());
	if (tier == TIER_BACKING && is_shared_block(n_bytes, parent_size)) {
		if (parent_kind == KIND_BPF_IMAGE)
			kind = KIND_BPF_PACK;
		else if (parent_kind == KIND_EXECMEM) {
			kind = KIND_ROX_BLOCK;
			class = CLASS_BLOCK;
		}
	} else if (parent_kind == KIND_EXECMEM) {
		return;
	}
	key = address | class;
	if (live_regions.update(&key, &id))
		lose(LOST_SCOPE);
	// Frames and stack before the record: whoever reads a region from its ring finds the rest in the others.
	if (tier == TIER_BACKING)
		emit_frames(id, address, n_bytes);
	stack_key = emit_stack(ctx);
	record = region_ring.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOST_REGION);
		return;
	}
	fill_region(record, id, parent_id, stack_key, address, n_bytes, EVENT_ALLOC, tier, kind);
	record->map_level = walk(address, &record->entry, &slot);
#ifdef PROG_AUX_OFFSET
	struct task *task = this_task();

	if (task && task->prog && kind == KIND_BPF_IMAGE) {
		u64 aux = 0;

		bpf_probe_read_kernel(&aux, 8, (void *)(task->prog + PROG_AUX_OFFSET));
		bpf_probe_read_kernel(record->name, 16, (void *)(aux + AUX_NAME_OFFSET));
	}
#endif
	region_ring.ringbuf_submit(record, NO_WAKEUP);
}

static __always_inline void region_free(void *ctx, u8 tier, u8 class, u8 kind, u64 address)
{
	u64 key = address | class, *found = live_regions.lookup(&key), id = found ? *found : 0, stack_key;
	struct region_record *record;

	if (found)
		live_regions.delete(&key);
	if (tier == TIER_BACKING)
		enter_scope(SCOPE_FREE, id, 0);
	if (!address || (!found && class != CLASS_BACKING))
		return;		// vfree and bpf_jit_free_exec serve others too
	stack_key = emit_stack(ctx);
	record = region_ring.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOST_REGION);
		return;
	}
	fill_region(record, id, 0, stack_key, address, 0, EVENT_FREE, tier, kind);
	region_ring.ringbuf_submit(record, NO_WAKEUP);
}

static __always_inline void region_free_exit(void)
{
	u64 parent_id, parent_size;
	u8 parent_kind;

	leave_scope(SCOPE_FREE, &parent_id, &parent_size, &parent_kind);
}

// vfree is called for every vmalloc area; only a block of the ROX cache, which has no free function of its own,
// concerns us.
static __always_inline void block_free_enter(void *ctx, u64 address)
{
	u64 key = address | CLASS_BLOCK;

	if (live_regions.lookup(&key)) {
		region_free(ctx, TIER_BACKING, CLASS_BLOCK, KIND_ROX_BLOCK, address);
		struct task *task = this_task();

		if (task && task->n_scopes && task->n_scopes <= SCOPES)
			task->kind[scope_index(task->n_scopes - 1)] = SCOPE_FREE_BLOCK;
	}
}

static __always_inline void block_free_exit(void)
{
	u64 parent_id, parent_size;
	struct task *task = this_task();
	u8 parent_kind;

	if (task && top_scope(task) == SCOPE_FREE_BLOCK)
		leave_scope(SCOPE_FREE_BLOCK, &parent_id, &parent_size, &parent_kind);
}

static __always_inline void compile_enter(u64 prog)
{
	struct task *task = enter_task();

	if (task)
		task->prog = prog;
}

static __always_inline void compile_exit(void)
{
	struct task *task = this_task();

	if (task) {
		task->prog = 0;
		leave_task(task);
	}
}

static __always_inline void module_scope_exit(void)
{
	u64 parent_id, parent_size;
	u8 parent_kind;

	leave_scope(KIND_MODULE, &parent_id, &parent_size, &parent_kind);
}

static __always_inline void module_event(void *ctx, u64 module, u8 event)
{
	u64 key = module | CLASS_MODULE, id = 0, *found, stack_key;
	struct task *task = this_task();
	struct region_record *record;

	if (event == EVENT_ALLOC) {
		if (task && top_scope(task) == KIND_MODULE)
			id = top_region(task);
		if (!id)
			id = new_id(bpf_ktime_get_ns());
		live_regions.update(&key, &id);
	} else {
		found = live_regions.lookup(&key);
		if (found) {
			id = *found;
			live_regions.delete(&key);
		}
	}
	stack_key = emit_stack(ctx);
	record = region_ring.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOST_REGION);
		return;
	}
	fill_region(record, id, 0, stack_key, 0, 0, event, TIER_ASKED, KIND_MODULE);
	bpf_probe_read_kernel(record->name, sizeof(record->name), (void *)(module + MODULE_NAME_OFFSET));
	region_ring.ringbuf_submit(record, NO_WAKEUP);
}

RAW_TRACEPOINT_PROBE(module_load)
{
	if (is_armed())
		module_event(ctx, ctx->args[0], EVENT_ALLOC);
	return 0;
}

RAW_TRACEPOINT_PROBE(module_free)
{
	if (is_armed())
		module_event(ctx, ctx->args[0], EVENT_FREE);
	return 0;
}

// One page of secret memory, known by the change that takes it out of the direct map.
static __always_inline void secret_page_alloc(u64 id, u64 pfn, u64 stack_key)
{
	struct region_record *record;

	u32 zero = 0;
	struct live *live = lives.lookup(&zero);
	int is_new = !secret_pfns.lookup(&pfn);

	if (secret_pfns.update(&pfn, &id))
		lose(LOST_SCOPE);
	else if (is_new && live)
		__sync_fetch_and_add(&live->n_secret, 1);
	record = region_ring.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOST_REGION);
		return;
	}
	fill_region(record, id, 0, stack_key, 0, 4096, EVENT_ALLOC, TIER_ASKED, KIND_SECRET_PAGE);
	record->map_level = 1;
	record->entry = pfn << 12 | 1;
	region_ring.ringbuf_submit(record, NO_WAKEUP);
}

static __always_inline void secret_page_free(void *ctx, u64 pfn)
{
	u64 *found = secret_pfns.lookup(&pfn), id = found ? *found : 0, stack_key;
	struct region_record *record;

	stack_key = emit_stack(ctx);
	record = region_ring.ringbuf_reserve(sizeof(*record));
	if (!record) {
		lose(LOST_REGION);
		return;
	}
	fill_region(record, id, 0, stack_key, 0, 0, EVENT_FREE, TIER_ASKED, KIND_SECRET_PAGE);
	region_ring.ringbuf_submit(record, NO_WAKEUP);
}
