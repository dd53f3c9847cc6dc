// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Page allocations and frees in scope of the regions: raw tracepoints, which interrupts may nest in safely. The
// allocation tracepoint stays silent for alloc_pages_bulk*; those frames are read from the page tables behind a region.

static __always_inline void emit_page(u8 event, u64 pfn, u32 order, u32 gfp, u32 migratetype, u8 scope, u64 region_id)
{
	struct page_record *record = page_ring.ringbuf_reserve(sizeof(*record));

	if (!record) {
		lose(LOST_PAGE);
		return;
	}
	record->ts = bpf_ktime_get_ns();
	record->pfn = pfn;
	record->region_id = region_id;
	record->gfp = gfp;
	record->pid = bpf_get_current_pid_tgid();
	record->cpu = bpf_get_smp_processor_id();
	record->event = event;
	record->order = order;
	record->migratetype = migratetype;
	record->scope = scope;
	page_ring.ringbuf_submit(record, 0);
}

static __always_inline void page_alloc(u64 page, u32 order, u32 gfp, u32 migratetype)
{
	struct task *task = this_task();
	u8 scope;

	if (!task || !page)		// NULL: the allocation failed
		return;
	scope = task->depth ? SCOPE_SPLIT : top_scope(task);
	if (!scope || scope == SCOPE_FREE || scope == SCOPE_FREE_BLOCK)
		return;
	emit_page(EVENT_PAGE_ALLOC, frame_of(page), order, gfp, migratetype, scope, task->depth ? 0 : top_region(task));
}

static __always_inline void page_free(u64 page, u32 order)
{
	u64 pfn = frame_of(page), *secret = secret_pfns.lookup(&pfn);
	struct task *task;
	u8 scope;

	if (secret) {
		emit_page(EVENT_PAGE_FREE, pfn, order, 0, 0, KIND_SECRET_PAGE, *secret);
		secret_pfns.delete(&pfn);
		return;
	}
	task = this_task();
	if (!task || task->depth)
		return;
	scope = top_scope(task);
	if (scope == SCOPE_FREE || scope == SCOPE_FREE_BLOCK)
		emit_page(EVENT_PAGE_FREE, pfn, order, 0, 0, scope, top_region(task));
}

// From 6.1 on a raw tracepoint's program is skipped while it runs already on its CPU, as when an interrupt frees a page
// in the middle of it. So each has a spare behind it, which takes the events that the first did not see: the first
// leaves each page it has seen in a slot, the spare takes it out, and finds none where the first was skipped.
#define SEEN_SLOTS 64

BPF_PERCPU_ARRAY(seen_pages, u64, 2 * SEEN_SLOTS);
BPF_PERCPU_ARRAY(rescued, u64, 1);

static __always_inline u64 *seen_slot(u8 event, u64 page)
{
	u32 slot = event * SEEN_SLOTS + ((page >> 6) & (SEEN_SLOTS - 1));

	return seen_pages.lookup(&slot);
}

static __always_inline void leave_seen(u8 event, u64 page)
{
	u64 *slot = seen_slot(event, page);

	if (slot)
		*slot = page;
}

static __always_inline int was_seen(u8 event, u64 page)
{
	u64 *slot = seen_slot(event, page), *n;
	u32 zero = 0;

	if (slot && *slot == page) {
		*slot = 0;
		return 1;
	}
	n = rescued.lookup(&zero);
	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

// mm_page_alloc(struct page *page, unsigned int order, gfp_t gfp_flags, int migratetype)
int first_mm_page_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	if (!is_armed())
		return 0;
	page_alloc(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
	leave_seen(EVENT_PAGE_ALLOC, ctx->args[0]);
	return 0;
}

int spare_mm_page_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_armed() && !was_seen(EVENT_PAGE_ALLOC, ctx->args[0]))
		page_alloc(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
	return 0;
}

// mm_page_free(struct page *page, unsigned int order)
int first_mm_page_free(struct bpf_raw_tracepoint_args *ctx)
{
	if (!is_armed())
		return 0;
	page_free(ctx->args[0], ctx->args[1]);
	leave_seen(EVENT_PAGE_FREE, ctx->args[0]);
	return 0;
}

int spare_mm_page_free(struct bpf_raw_tracepoint_args *ctx)
{
	if (is_armed() && !was_seen(EVENT_PAGE_FREE, ctx->args[0]))
		page_free(ctx->args[0], ctx->args[1]);
	return 0;
}
