// SPDX-License-Identifier: Apache-2.0
//
// Populate and drop: the worst load for a recorder of page events. Each process maps N MB in 4 KiB pages, all at once,
// and unmaps them, for T seconds. Every page is one allocation and one free at least; page tables come on top of that.
//
// populate_and_drop MB SECONDS PROCESSES OUT -> one object of JSON in OUT: pages, seconds (of the longest process),
// cpu_seconds (of all), began_ns (CLOCK_MONOTONIC), pids.

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define MAX_PROCESSES 1024

struct result {
	unsigned long pages;
	double seconds;
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void die(const char *what)
{
	fprintf(stderr, "populate_and_drop: %s: %s\n", what, strerror(errno));
	exit(2);
}

static struct result run(size_t bytes, double seconds)
{
	struct result result = {0};
	double begin = now();

	do {
		void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

		if (at == MAP_FAILED)
			die("mmap");
		if (munmap(at, bytes))
			die("munmap");
		result.pages += bytes / PAGE;
		result.seconds = now() - begin;
	} while (result.seconds < seconds);
	return result;
}

int main(int argc, char **argv)
{
	static pid_t pids[MAX_PROCESSES];
	static int pipes[MAX_PROCESSES][2];
	int i, n, status, failed = 0;
	double seconds, pages = 0, longest = 0, began;
	struct rusage used;
	size_t bytes;
	FILE *out;

	if (argc != 5) {
		fprintf(stderr, "usage: populate_and_drop MB SECONDS PROCESSES OUT\n");
		return 2;
	}
	bytes = strtoul(argv[1], NULL, 10) << 20;
	seconds = atof(argv[2]);
	n = atoi(argv[3]);
	if (!bytes || seconds <= 0 || n < 1 || n > MAX_PROCESSES) {
		fprintf(stderr, "populate_and_drop: MB, SECONDS and PROCESSES must be positive\n");
		return 2;
	}
	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))	// children inherit it
		die("prctl");
	out = fopen(argv[4], "w");
	if (!out)
		die(argv[4]);
	began = now();
	for (i = 0; i < n; i++) {
		if (pipe(pipes[i]))
			die("pipe");
		pids[i] = fork();
		if (pids[i] < 0)
			die("fork");
		if (!pids[i]) {
			struct result result = run(bytes, seconds);

			if (write(pipes[i][1], &result, sizeof(result)) != sizeof(result))
				die("write");
			_exit(0);
		}
	}
	for (i = 0; i < n; i++) {
		struct result result;

		close(pipes[i][1]);
		if (read(pipes[i][0], &result, sizeof(result)) != sizeof(result))
			failed = 1;
		waitpid(pids[i], &status, 0);
		failed |= status != 0;
		pages += result.pages;
		longest = result.seconds > longest ? result.seconds : longest;
	}
	if (failed)
		return 2;
	getrusage(RUSAGE_CHILDREN, &used);
	fprintf(out, "{\"pages\": %.0f, \"seconds\": %.6f, ", pages, longest);
	fprintf(out, "\"cpu_seconds\": %.6f, \"began_ns\": %.0f, \"pids\": [",
		used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6,
		began * 1e9);
	for (i = 0; i < n; i++)
		fprintf(out, "%s%d", i ? ", " : "", pids[i]);
	fprintf(out, "]}\n");
	if (fclose(out))
		die(argv[4]);
	return 0;
}
