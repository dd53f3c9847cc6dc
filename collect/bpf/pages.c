// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Page allocations and frees, at raw tracepoints, which interrupts may nest in safely. Those in scope of a region go as
// whole records through a ring of their own; with PAGES_ALL every other one goes, short, through its CPU's ring
// (collect/bpf/page_rings.c). What no tracepoint reports (bulk, contiguous and split allocations) is told by stubs of
// collect/source.py, which call the functions at the end.

#ifdef REGIONS
static __always_inline void page_alloc(u64 page, u32 order, u32 gfp, u32 migratetype)
{
	struct task *task;
	u8 scope = 0;

	if (!page)		// NULL: the allocation failed
		return;
	task = task_in_scope();
	if (task)
		scope = task->depth ? SCOPE_SPLIT : top_scope(task);
	if (scope && scope != SCOPE_FREE && scope != SCOPE_FREE_BLOCK)
		emit_page(EVENT_PAGE_ALLOC, frame_of(page), order, gfp, migratetype, scope, task->depth ? 0 : top_region(task));
	else
		emit_other_page(EVENT_PAGE_ALLOC, frame_of(page), order, gfp, migratetype);
}

// A page of secret memory that was allocated while we watched: its free is in scope wherever it happens.
static __always_inline int secret_page_goes(u64 pfn, u32 order)
{
	u32 zero = 0;
	struct live *live = lives.lookup(&zero);
	u64 *secret;

	if (!live || !live->n_secret)
		return 0;
	secret = secret_pfns.lookup(&pfn);
	if (!secret)
		return 0;
	emit_page(EVENT_PAGE_FREE, pfn, order, 0, 0, KIND_SECRET_PAGE, *secret);
	if (!secret_pfns.delete(&pfn))
		__sync_fetch_and_add(&live->n_secret, -1);
	return 1;
}

static __always_inline void page_free(u64 page, u32 order)
{
	u64 pfn = frame_of(page);
	struct task *task;
	u8 scope = 0;

	if (secret_page_goes(pfn, order))
		return;
	task = task_in_scope();
	if (task && !task->depth)
		scope = top_scope(task);
	if (scope == SCOPE_FREE || scope == SCOPE_FREE_BLOCK)
		emit_page(EVENT_PAGE_FREE, pfn, order, 0, 0, scope, top_region(task));
	else
		emit_other_page(EVENT_PAGE_FREE, pfn, order, 0, 0);
}

#else
static __always_inline void page_alloc(u64 page, u32 order, u32 gfp, u32 migratetype)
{
	if (page)
		emit_other_page(EVENT_PAGE_ALLOC, frame_of(page), order, gfp, migratetype);
}

static __always_inline void page_free(u64 page, u32 order)
{
	emit_other_page(EVENT_PAGE_FREE, frame_of(page), order, 0, 0);
}
#endif

// From 6.1 on a raw tracepoint's program is skipped while it runs already on its CPU, as when an interrupt frees a page
// in the middle of it. So each has a spare behind it, which takes the events that the first did not see: the first
// leaves each page it has seen in a slot, the spare takes it out, and finds none where the first was skipped. An
// interrupt between the two may need the same slot: so it keeps what it found there. In the middle of a spare nothing is
// left, for the interrupt's own spare will be skipped, and the page would be taken for seen another time. What is left all
// the same, just before `in_spare` is set and just after, is kept a few times and then dropped; the times are counted in the
// lowest bits of the address, which are 0 in that of a struct page.
#define SEEN_SLOTS 64
#define SEEN_CPUS 1024
#define SEEN_KEPT 7UL

struct seen_pages {
	u64 in_spare;
	struct { u64 page, before; } slots[SEEN_SLOTS];
};

BPF_ARRAY(seen, struct seen_pages, SEEN_CPUS * 2);
BPF_PERCPU_ARRAY(rescued, u64, 1);

static __always_inline struct seen_pages *seen_here(u8 event)
{
	u32 at = (bpf_get_smp_processor_id() & (SEEN_CPUS - 1)) * 2 + event;

	return seen.lookup(&at);
}

static __always_inline void leave_seen(u8 event, u64 page)
{
#ifdef PAGES_ALL	// else no spare is attached that would ask
	struct seen_pages *here = seen_here(event);
	u32 slot = (page >> 6) & (SEEN_SLOTS - 1);
	u64 before;

	if (!here || here->in_spare)
		return;
	before = here->slots[slot].page;
	here->slots[slot].before = (before & SEEN_KEPT) == SEEN_KEPT ? 0 : before;
	here->slots[slot].page = page;
#endif
}

static __always_inline int was_seen(struct seen_pages *here, u64 page)
{
	u32 slot = (page >> 6) & (SEEN_SLOTS - 1), zero = 0;
	u64 *n;

	if ((here->slots[slot].page & ~SEEN_KEPT) == page) {
		here->slots[slot].page = here->slots[slot].before ? here->slots[slot].before + 1 : 0;
		here->slots[slot].before = 0;
		return 1;
	}
	if ((here->slots[slot].before & ~SEEN_KEPT) == page) {		// the interrupt came just before `in_spare` was set
		here->slots[slot].before = 0;
		return 1;
	}
	n = rescued.lookup(&zero);
	if (n)
		__sync_fetch_and_add(n, 1);
	return 0;
}

static __always_inline void set_in_spare(struct seen_pages *here, u64 value)
{
	*(volatile u64 *)&here->in_spare = value;
}

// Pages reported inside a bulk allocation, which must not be told twice.
static __always_inline void seen_in_bulk(u64 page)
{
#ifdef UNREPORTED_PAGES
	u32 zero = 0;
	struct live *live = lives.lookup(&zero);

	if (live && live->n_bulk)
		bulk_reported(page);
#endif
}

// mm_page_alloc(struct page *page, unsigned int order, gfp_t gfp_flags, int migratetype)
int first_mm_page_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	if (!is_armed())
		return 0;
	page_alloc(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
	seen_in_bulk(ctx->args[0]);
	leave_seen(EVENT_PAGE_ALLOC, ctx->args[0]);
	return 0;
}

int spare_mm_page_alloc(struct bpf_raw_tracepoint_args *ctx)
{
	struct seen_pages *here = seen_here(EVENT_PAGE_ALLOC);

	if (!here)
		return 0;
	set_in_spare(here, 1);
	if (is_armed() && !was_seen(here, ctx->args[0])) {
		page_alloc(ctx->args[0], ctx->args[1], ctx->args[2], ctx->args[3]);
		seen_in_bulk(ctx->args[0]);
	}
	set_in_spare(here, 0);
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
	struct seen_pages *here = seen_here(EVENT_PAGE_FREE);

	if (!here)
		return 0;
	set_in_spare(here, 1);
	if (is_armed() && !was_seen(here, ctx->args[0]))
		page_free(ctx->args[0], ctx->args[1]);
	set_in_spare(here, 0);
	return 0;
}
