// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// How page events reach user space. Those in scope of a region are whole records in a BPF ring buffer. With PAGES_ALL
// every other one goes, short, through a ring of its CPU. The kernel's own ring buffer takes a lock and two
// calls an event; here an event costs one atomic addition and three stores, in memory that user space maps
// (BPF_F_MMAPABLE, 5.5). collect/page_ring.py drains it.
//
// A program takes the next place of its CPU's ring, writes `what` and `more`, and `ts` last: user space stops at the first
// place whose `ts` is still 0, and puts a 0 there when it has read it. Interrupts and preempting tasks take places
// behind it, which is why the place is taken by an atomic addition that gives its old value (5.12, "bpf: Add BPF_FETCH
// field / create atomic_fetch_add instruction"). `limit` is how far the programs may go: user space moves it as it reads.
// Whoever passed the check together with others may go a little beyond it, and finds the places between limit and
// the reader's position, which user space leaves free for that (SLACK in collect/page_ring.py).

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
	page_ring.ringbuf_submit(record, NO_WAKEUP);
}

#ifdef PAGES_ALL
// By block of 512 pages, so that an allocation and its free are both in or both out: products with 2^32 / phi, modulo
// 2^32, scatter neighbouring blocks evenly (Knuth, The Art of Computer Programming, vol. 3, 6.4).
static __always_inline int is_sampled(u64 pfn, u64 below)
{
	return (u32)((pfn >> 9) * 2654435769U) < below;
}
#endif

#ifdef PAGE_RING_CHUNKS
struct page_event {
	u64 ts;
	u64 what;		// pfn, order << 40, migratetype << 45, event << 49, cpu << 52
	u64 more;		// gfp (or, of a contiguous range, its number of pages), pid << 32
};

#define EVENTS_PER_CHUNK 2048

struct page_chunk {
	struct page_event events[EVENTS_PER_CHUNK];
};

struct page_position {
	u64 head;		// places taken
	u64 limit;		// places that may be taken; 0: not recording
	u64 sample;		// page blocks whose hash is below it are recorded: 2^32 for all
	u64 n_lost;		// events that found no room
	u64 pad[12];		// to two cache lines: no two CPUs share one
};

BPF_F_TABLE("array", u32, struct page_chunk, page_chunks, PAGE_RING_CPUS * PAGE_RING_CHUNKS, 1024 /* BPF_F_MMAPABLE */);
BPF_F_TABLE("array", u32, struct page_position, page_positions, PAGE_RING_CPUS, 1024);

// The old value of *at, to which 1 is added. What stands here is an addition without fetch: see collect/atomic_fetch.py.
static __always_inline u64 fetch_add(u64 *at)
{
	u64 n;

	asm volatile("%[n] = 1\n%[n] = 1\nlock *(u64 *)(%[at] + 0) += %[n]" : [n] "=&r"(n) : [at] "r"(at) : "memory");
	return n;
}

static __always_inline void emit_other_page(u8 event, u64 pfn, u32 order, u32 gfp, u32 migratetype)
{
	u32 cpu = bpf_get_smp_processor_id(), index;
	struct page_position *position = page_positions.lookup(&cpu);
	struct page_event *at;
	struct page_chunk *chunk;
	u64 place;

	if (!position || !is_sampled(pfn, position->sample))
		return;
	if (position->head >= position->limit) {
		if (position->limit)
			__sync_fetch_and_add(&position->n_lost, 1);
		return;
	}
	place = fetch_add(&position->head);
	index = cpu * PAGE_RING_CHUNKS + ((place / EVENTS_PER_CHUNK) & (PAGE_RING_CHUNKS - 1));
	chunk = page_chunks.lookup(&index);
	if (!chunk)
		return;
	at = &chunk->events[place & (EVENTS_PER_CHUNK - 1)];
	at->what = pfn | (u64)order << 40 | (u64)migratetype << 45 | (u64)event << 49 | (u64)cpu << 52;
	at->more = gfp | bpf_get_current_pid_tgid() << 32;
	asm volatile("" ::: "memory");
	at->ts = bpf_ktime_get_ns();
}
#elif defined(PAGES_ALL)
// Before 5.12: through the ring of the pages in scope.
BPF_ARRAY(page_sample, u64, 1);

static __always_inline void emit_other_page(u8 event, u64 pfn, u32 order, u32 gfp, u32 migratetype)
{
	u32 zero = 0;
	u64 *below = page_sample.lookup(&zero);

	if (below && is_sampled(pfn, *below))
		emit_page(event, pfn, order, gfp, migratetype, 0, 0);
}
#else
static __always_inline void emit_other_page(u8 event, u64 pfn, u32 order, u32 gfp, u32 migratetype)
{
}
#endif
