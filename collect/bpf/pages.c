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

// mm_page_alloc(struct page *page, unsigned int order, gfp_t gfp_flags, int migratetype); page is NULL on failure
RAW_TRACEPOINT_PROBE(mm_page_alloc)
{
	struct task *task = this_task();
	u8 scope;

	if (!task || !ctx->args[0])
		return 0;
	if (task->depth) {
		emit_page(EVENT_PAGE_ALLOC, frame_of(ctx->args[0]), ctx->args[1], ctx->args[2], ctx->args[3], SCOPE_SPLIT, 0);
		return 0;
	}
	scope = top_scope(task);
	if (!scope || scope == SCOPE_FREE || scope == SCOPE_FREE_BLOCK)
		return 0;
	emit_page(EVENT_PAGE_ALLOC, frame_of(ctx->args[0]), ctx->args[1], ctx->args[2], ctx->args[3], scope,
		  top_region(task));
	return 0;
}

// mm_page_free(struct page *page, unsigned int order)
RAW_TRACEPOINT_PROBE(mm_page_free)
{
	u64 pfn = frame_of(ctx->args[0]), *secret = secret_pfns.lookup(&pfn);
	struct task *task;
	u8 scope;

	if (!is_armed())
		return 0;
	if (secret) {
		emit_page(EVENT_PAGE_FREE, pfn, ctx->args[1], 0, 0, KIND_SECRET_PAGE, *secret);
		secret_pfns.delete(&pfn);
		return 0;
	}
	task = this_task();
	if (!task || task->depth)
		return 0;
	scope = top_scope(task);
	if (scope == SCOPE_FREE || scope == SCOPE_FREE_BLOCK)
		emit_page(EVENT_PAGE_FREE, pfn, ctx->args[1], 0, 0, scope, top_region(task));
	return 0;
}
