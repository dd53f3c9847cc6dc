# `make demo` and `make test` need python3 (3.11 or newer, with venv) and make; they build .venv themselves.
# The lab needs root, once, for `make lab-setup` and for building a guest's userland.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# How often a broken download is tried again before giving up.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --retries 5 --timeout 60
TRIES := 3

KERNEL ?= 6.1
LOAD ?= churn
OUT ?= lab/$(KERNEL)-$(LOAD)
PROGRAMS := collect analyze replay
LAB_KERNELS := 5.10 6.1 7.2
# What `make bench-collect` runs, and where it writes: a part of it (ONLY=) does not replace the whole result.
ROUNDS ?= 5
SECONDS ?= 5
ONLY ?=
REPORT ?= $(if $(ONLY),,docs/overhead.md)
# What `make bench-analyze` runs: millions of page events, rounds; traces are kept in FOLDER, and used again.
EVENTS ?= 100
ANALYZE_ROUNDS ?= 3
FOLDER ?=
ANALYZE_REPORT ?= $(if $(filter 100,$(EVENTS)),docs/analyze-speed.md)
HOURS ?= 1
COUNT_KERNELS ?= 5.10 6.1 6.12 7.2
MOMENT_KERNELS ?= 5.10 6.1 6.12 7.2
# MEMORY=8G CPUS=2 SEED=1 FLAVOUR=cloud-amd64 TIMEOUT=900 SCALE=0.3, and AGED=1, LA57=1 or FORCE=1 as switches.
LAB_OPTIONS = $(if $(MEMORY),--memory $(MEMORY)) $(if $(CPUS),--cpus $(CPUS)) $(if $(SEED),--seed $(SEED)) \
	$(if $(FLAVOUR),--flavour $(FLAVOUR)) $(if $(TIMEOUT),--timeout $(TIMEOUT)) \
	$(if $(SCALE),--load-args '--scale $(SCALE)') \
	$(if $(filter 1,$(AGED)),--aged) $(if $(filter 1,$(LA57)),--la57) $(if $(filter 1,$(FORCE)),--force)

# Events that `make bench-replay` repeats a sample to.
REPLAY_EVENTS ?= 10000000
REPLAY_REPORT ?= $(if $(filter 10000000,$(REPLAY_EVENTS)),docs/replay-speed.md)

.DEFAULT_GOAL := help
.PHONY: help venv demo picture test test-browser test-kills test-every-byte fuzz test-kernels test-counts test-moments validate lint lab lab-setup lab-verify bench-collect bench-analyze bench-replay man dist test-install clean

help: ## this list
	@echo "directmap: who breaks up the kernel's direct map, and what would a cache save?"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo; echo "  make lab KERNEL=6.1 LOAD=churn [MEMORY=8G CPUS=2 SEED=1 SCALE=0.3 AGED=1 LA57=1 OUT=DIR FORCE=1]"
	@echo "  make test-kernels [CELLS='6.1-* *-5level-*' KEEP_GOING=1 TIMEOUT=600 SCALE=0.4]"

demo: $(VENV)/.installed ## report and replay of every trace in sample_traces/, as one page
	@$(BIN)/python -m replay.demo --traces sample_traces -o demo --force

picture: $(VENV)/.installed ## docs/report.png, the picture in README.md, from a sample trace
	@$(BIN)/python -m analyze report sample_traces/6.1-churn -o demo/picture --force
	@cp demo/picture/overview.png docs/report.png

venv: $(VENV)/.installed ## .venv with what directmap runs on

test: lint ## lint, then every test that needs neither root nor a guest
	$(BIN)/python -m pytest

test-browser: $(VENV)/.installed-test ## the page in a real Chromium (apt-get install chromium fonts-dejavu-core); may not be skipped
	DIRECTMAP_BROWSER=1 $(BIN)/python -m pytest tests/browser

test-kills: $(VENV)/.installed-test ## kill the real recorder 100 times (root, some five minutes)
	DIRECTMAP_KILLS=100 $(BIN)/python -m pytest tests/unit/test_recording.py -k kills

test-every-byte: $(VENV)/.installed-test ## cut every file of a small trace at every byte
	DIRECTMAP_EVERY_BYTE=1 $(BIN)/python -m pytest tests/unit/test_hostile_traces.py -k any_byte

fuzz: $(VENV)/.installed-test ## fuzz everything that reads a trace for HOURS= of CPU time (docs/fuzzing.md)
	$(BIN)/python -m pip install -qq --disable-pip-version-check atheris
	$(BIN)/python -m tests.fuzz run --hours $(HOURS)

lint: $(VENV)/.installed-test ## ruff and mypy
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy

lab-setup: ## install what the lab needs on this machine (root)
	$(PYTHON) -m tests.vm setup

lab: ## record LOAD on Debian's KERNEL in a guest, into OUT (variables: below)
	$(PYTHON) -m tests.vm record --kernel $(KERNEL) --load $(LOAD) $(LAB_OPTIONS) -o $(OUT)

lab-verify: $(VENV)/.installed ## record churn on 5.10, 6.1 and 7.2 and verify each recording
	set -e; for kernel in $(LAB_KERNELS); do \
		$(PYTHON) -m tests.vm record --kernel $$kernel --load churn $(LAB_OPTIONS) --force -o lab/verify-$$kernel; \
		$(BIN)/python -m analyze verify lab/verify-$$kernel; \
	done

test-kernels: $(VENV)/.installed ## record churn on many kernels and machines, verify each, write docs/kernels.md
	$(BIN)/python -m tests.vm.matrix $(if $(CELLS),--cells '$(CELLS)') $(if $(filter 1,$(KEEP_GOING)),--keep-going) \
		$(if $(TIMEOUT),--timeout $(TIMEOUT)) $(if $(SCALE),--scale $(SCALE)) $(if $(SEED),--seed $(SEED))

validate: $(VENV)/.installed ## predict on one kernel what another does, record it, write docs/validation.md (hours; RUNS=, STEPS=)
	$(BIN)/python -m tests.vm.validation $(if $(RUNS),--runs '$(RUNS)') $(if $(STEPS),--steps '$(STEPS)')

man: $(VENV)/.installed ## manual pages and shell completion, into share
	@for program in $(PROGRAMS); do \
		$(BIN)/python -m $$program manual -o share/man/man1 --force >/dev/null || exit; \
		mkdir -p share/bash-completion/completions share/zsh/site-functions; \
		$(BIN)/python -m $$program completion bash >share/bash-completion/completions/directmap-$$program || exit; \
		$(BIN)/python -m $$program completion zsh >share/zsh/site-functions/_directmap-$$program || exit; \
	done; echo "share: man -l share/man/man1/directmap-collect.1"

dist: man $(VENV)/.installed-test ## a wheel and an sdist, into dist/
	@rm -rf dist build/lib build/bdist*
	@$(BIN)/python -m build --outdir dist . >dist.log 2>&1 || { cat dist.log >&2; rm -f dist.log; exit 1; }
	@rm -f dist.log; ls dist/*

bench-collect: $(VENV)/.installed ## measure what recording costs, beside perf and bpftrace (root; ROUNDS=, SECONDS=, ONLY=)
	@$(BIN)/python -m tests.bench --rounds $(ROUNDS) --seconds $(SECONDS) \
		$(if $(ONLY),--only '$(ONLY)') $(if $(REPORT),-o $(REPORT))

bench-analyze: $(VENV)/.installed-test ## measure how fast the analyzer answers (root, to record; EVENTS=, ANALYZE_ROUNDS=, FOLDER=)
	@$(BIN)/python -m tests.bench.analyzer --events $(EVENTS) --rounds $(ANALYZE_ROUNDS) \
		$(if $(FOLDER),--folder $(FOLDER)) $(if $(ANALYZE_REPORT),-o $(ANALYZE_REPORT))

bench-replay: $(VENV)/.installed ## measure how fast policies are replayed, beside libCacheSim (REPLAY_EVENTS=)
	@$(BIN)/python -m tests.bench.replayer --events $(REPLAY_EVENTS) $(if $(REPLAY_REPORT),-o $(REPLAY_REPORT))

test-counts: $(VENV)/.installed-test ## record 23 modules, 101 programs, 211 secret pages on four kernels; count them
	DIRECTMAP_VM=1 DIRECTMAP_VM_KERNELS='$(COUNT_KERNELS)' $(BIN)/python -m pytest -m vm tests/vm/test_counted.py

test-moments: $(VENV)/.installed-test ## 20 snapshots at random moments under churn on four kernels; each must be as rebuilt
	DIRECTMAP_VM=1 DIRECTMAP_VM_KERNELS='$(MOMENT_KERNELS)' $(BIN)/python -m pytest -m vm tests/vm/test_moments.py
	$(BIN)/python -m tests.vm.moments_table

test-install: $(VENV)/.installed-test ## follow README.md on clean Debian 12 and 13 userlands (root; SUITES=, FULL=1: make test there too)
	DIRECTMAP_INSTALL=1 $(if $(FULL),DIRECTMAP_INSTALL_FULL=1) $(if $(SUITES),DIRECTMAP_INSTALL_SUITES='$(SUITES)') \
		$(BIN)/python -m pytest -m install tests/install

clean: ## remove what make built here (.venv, demo, caches); recordings in lab/ stay
	rm -rf $(VENV) demo build dist share *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "directmap needs Python 3.11 or newer as python3 (or: make PYTHON=python3.12 ...)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "this Python has no venv module; install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# $(call install,WHAT): several tries, for a download may break off. `-e .` is directmap itself, as commands in $(BIN).
define install
	@echo "installing $(filter-out --no-deps -r -e,$(1:.=this checkout)) into $(VENV), once" >&2
	@for try in $$(seq $(TRIES)); do \
		$(PIP_INSTALL) $(1) && exit 0; \
		echo "installing failed (try $$try of $(TRIES))" >&2; sleep $$((try * 5)); \
	done; echo "could not install $(1): is the package index reachable?" >&2; exit 1
endef

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(call install,-r requirements.txt)
	$(call install,--no-deps -e .)
	@touch $@

$(VENV)/.installed-test: requirements-test.txt $(VENV)/.installed
	$(call install,-r requirements-test.txt)
	@touch $@
