// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//
// Changes of the direct map on request, for the lab only: every rule of __change_page_attr_set_clr
// (arch/x86/mm/pat/set_memory.c) can be had from a real kernel, also those that no user of this kernel asks for.
// Commands are lines written to /proc/cpa_rules; whoever writes them is the caller that a recorder sees.
//
//	hold PAGES			take that many neighbouring pages, aligned; their first page frame is the answer
//	call PFN PAGES SET CLR HOW	change them: HOW is a sum of the HOW_ bits below
//	fail AFTER			in the next call, all allocations but the first AFTER fail
//	array PFN STRIDE PAGES SET CLR	a pages array: every STRIDE-th page
//	rox PFN PAGES			set_memory_rox, which alone may collapse (6.15 and later)
//	protect YES			whether the kernel protects its rodata, as it does from the end of its boot on
//
// Reading gives "RESULT FIRST_PAGE_FRAME" of the last command.

#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#define HOW_FORCE_SPLIT 1
#define HOW_PGD 2
#define HOW_NO_ALIAS 4
#define HOW_DECOY 8

#define CPA_PAGES_ARRAY 4
#define CPA_NO_CHECK_ALIAS 8

// struct cpa_data, the same from 5.10 to 7.3 (the recorder checks it against the kernel's own types).
struct cpa {
	unsigned long *vaddr;
	pgd_t *pgd;
	unsigned long mask_set, mask_clr, numpages, curpage, pfn;
	unsigned int flags;
	unsigned int force_split : 1;
	struct page **pages;
};

static unsigned long (*lookup)(const char *name);
static int (*change)(struct cpa *cpa, int primary);
static void (*flush)(void);
static struct page *(*contig)(unsigned long n, gfp_t gfp, int nid, nodemask_t *mask);
static int (*rox)(unsigned long address, int n);
static pgd_t *top;
static int *protects;

static struct task_struct *fails_for;
static int fails_after = -1;
static long result, answer;

// What the allocator does instead: its return.
static noinline struct page *nothing(void)
{
	return NULL;
}

// At the entry of the page allocator: no page, where the call under test asks for one too many.
static int no_page(struct kprobe *probe, struct pt_regs *regs)
{
	if (READ_ONCE(fails_for) != current || fails_after-- > 0)
		return 0;
	regs->ip = (unsigned long)nothing;
	return 1;
}

static struct kprobe allocator = {.pre_handler = no_page};

static int run_change(unsigned long pfn, unsigned long n, unsigned long set, unsigned long clr, int how)
{
	unsigned long address = (unsigned long)__va(pfn << PAGE_SHIFT);
	struct cpa cpa = {.vaddr = &address, .mask_set = set, .mask_clr = clr, .numpages = n, .pfn = pfn};
	int ret;

	if (how & HOW_DECOY)
		address ^= 1UL << 63;
	if (how & HOW_PGD)
		cpa.pgd = top;
	if (how & HOW_NO_ALIAS)
		cpa.flags = CPA_NO_CHECK_ALIAS;
	cpa.force_split = how & HOW_FORCE_SPLIT;
	if (fails_after >= 0)
		WRITE_ONCE(fails_for, current);
	// To 6.1 the second argument says whether to look for aliases; since 6.2 the flag alone does (d597416683d5).
	ret = change(&cpa, LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0) || !(how & HOW_NO_ALIAS));
	WRITE_ONCE(fails_for, NULL);
	fails_after = -1;
	flush();
	return ret;
}

static int run_array(unsigned long pfn, unsigned long stride, unsigned long n, unsigned long set, unsigned long clr)
{
	struct cpa cpa = {.mask_set = set, .mask_clr = clr, .numpages = n, .flags = CPA_PAGES_ARRAY};
	unsigned long i;
	int ret;

	if (n > 65536)
		return -EINVAL;
	cpa.pages = kvmalloc_array(n, sizeof(*cpa.pages), GFP_KERNEL);
	if (!cpa.pages)
		return -ENOMEM;
	for (i = 0; i < n; i++)
		cpa.pages[i] = pfn_to_page(pfn + i * stride);
	ret = change(&cpa, 1);
	flush();
	kvfree(cpa.pages);
	return ret;
}

static ssize_t command(struct file *file, const char __user *from, size_t n, loff_t *at)
{
	unsigned long pfn, pages, set, clr, stride;
	char line[128] = {};
	struct page *page;
	int how;

	if (n >= sizeof(line) || copy_from_user(line, from, n))
		return -EFAULT;
	if (sscanf(line, "call %li %li %li %li %i", &pfn, &pages, &set, &clr, &how) == 5) {
		result = run_change(pfn, pages, set, clr, how);
	} else if (sscanf(line, "array %li %li %li %li %li", &pfn, &stride, &pages, &set, &clr) == 5) {
		result = run_array(pfn, stride, pages, set, clr);
	} else if (sscanf(line, "hold %li", &pages) == 1) {
		page = contig(pages, GFP_KERNEL | __GFP_NOWARN, 0, NULL);
		result = page ? 0 : -ENOMEM;
		answer = page ? page_to_pfn(page) : -1;
	} else if (sscanf(line, "rox %li %li", &pfn, &pages) == 2) {
		result = rox ? rox((unsigned long)__va(pfn << PAGE_SHIFT), pages) : -EOPNOTSUPP;
	} else if (sscanf(line, "protect %i", &how) == 1) {
		WRITE_ONCE(*protects, how);
		result = 0;
	} else if (sscanf(line, "fail %i", &how) == 1) {
		fails_after = how;
		result = 0;
	} else {
		return -EINVAL;
	}
	return n;
}

static ssize_t tell(struct file *file, char __user *to, size_t n, loff_t *at)
{
	char line[64];

	return simple_read_from_buffer(to, n, at, line, scnprintf(line, sizeof(line), "%ld %ld\n", result, answer));
}

static const struct proc_ops operations = {.proc_write = command, .proc_read = tell, .proc_lseek = default_llseek};

static unsigned long first_of(const char *const *names)
{
	unsigned long address = 0;

	while (*names && !address)
		address = lookup(*names++);
	return address;
}

static int __init begin(void)
{
	static const char *const contigs[] = {"alloc_contig_pages_noprof", "alloc_contig_pages", NULL};
	static const char *const pages[] = {"alloc_pages_noprof", "alloc_pages_current", "alloc_pages", NULL};
	struct kprobe probe = {.symbol_name = "kallsyms_lookup_name"};	// not exported since 5.7
	int ret = register_kprobe(&probe);

	if (ret)
		return ret;
	lookup = (void *)probe.addr;
	unregister_kprobe(&probe);
	change = (void *)lookup("__change_page_attr_set_clr");
	flush = (void *)lookup("flush_tlb_all");
	contig = (void *)first_of(contigs);
	rox = (void *)lookup("set_memory_rox");
	top = (void *)lookup("init_top_pgt");
	protects = (void *)lookup("kernel_set_to_readonly");
	allocator.addr = (void *)first_of(pages);
	if (!change || !flush || !contig || !top || !protects || !allocator.addr)
		return -ENOENT;
	ret = register_kprobe(&allocator);
	if (ret)
		return ret;
	if (!proc_create("cpa_rules", 0600, NULL, &operations)) {
		unregister_kprobe(&allocator);
		return -ENOMEM;
	}
	return 0;
}

static void __exit end(void)
{
	remove_proc_entry("cpa_rules", NULL);
	unregister_kprobe(&allocator);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Changes of the direct map on request, for directmap's lab");
MODULE_LICENSE("GPL");
