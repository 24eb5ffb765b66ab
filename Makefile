# One command for each need. `make up DIR=~/Shoal` and `make test` install what they need first.

# The first of these that is Python 3.11 or newer; 3.11 is what the lock file was made with.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
STAMP := .venv/installed
# Not every shell expands a tilde after `DIR=`.
FOLDER := $(patsubst ~/%,$(HOME)/%,$(DIR))

# Tests run beside each other, one process more than there are cores, as many of them wait for disks;
# idle ones take over what busy ones have not begun.
CORES := $(shell getconf _NPROCESSORS_ONLN || echo 2)
PARALLEL := -n $(shell echo $$(($(CORES) + 1))) --maxprocesses 5 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install up demo test test-impaired test-kills test-races test-editors test-fast simulate format lock clean
.PHONY: test-crashes test-meetings power-cuts test-plans fuzz mutants story
.PHONY: bench bench-quick bench-relay relay-kills test-relay-story
.PHONY: check check-format check-lint check-types check-imports

help:
	@echo 'make up DIR=~/Shoal   run a node on a folder (OPTIONS="--no-lan" adds options)'
	@echo 'make test             run all tests but the long one'
	@echo 'make test-kills       50 times kill -9, in the middle of everything'
	@echo 'make relay-kills      100 times kill -9 of a relay, and of its storage alone'
	@echo 'make story            two people and five devices, as the guide tells it'
	@echo 'make test-impaired    real nodes over a network that loses every third datagram'
	@echo 'make test-races       a person who saves, at every moment of a sync'
	@echo 'make test-crashes     a process that stops twice, at every pair of operations'
	@echo 'make test-meetings    what people did at the same time, in every order of meeting'
	@echo 'make power-cuts       a thousand power cuts on a real disk (root)'
	@echo 'make test-editors     how editors, git and SQLite save, ten times as long as in `make test`'
	@echo 'make test-relay-story a source tree and 300 MB through a relay, devices never awake together'
	@echo 'make check            format, lint, types, imports, style, fast tests'
	@echo 'make simulate         SEEDS=200 simulated worlds, or SEED=n: one, with its trace'
	@echo 'make mutants          plant faults in the program, and see the simulation find each'
	@echo 'make fuzz             hostile inputs for every decoder, SECONDS=60 of them'
	@echo 'make test-plans       random trees and histories, planned and carried out, SECONDS=60 of them'
	@echo 'make demo             two devices on this machine, a file going across'
	@echo 'make bench            Shoal beside Syncthing, rsync and Unison (root; an hour)'
	@echo 'make bench-quick      the same with less data (under 3 minutes)'
	@echo 'make bench-relay      200 devices at one relay, each saving every 5 s (under 3 minutes)'
	@echo 'make install          only install, into .venv'

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo 'shoal needs Python 3.11 or newer; install it, or name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || { rm -rf .venv; $(PYTHON) -m venv .venv || \
		{ echo 'cannot make a virtual environment (on Debian: apt-get install python3-venv)' >&2; rm -rf .venv; exit 1; }; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

up: $(STAMP)
	@test -n "$(DIR)" || { echo 'which folder? make up DIR=~/Shoal' >&2; exit 2; }
	@exec $(BIN)/shoal up "$(FOLDER)" $(OPTIONS)

demo: $(STAMP)
	@$(BIN)/python -m simulations.demo

test: $(STAMP)
	$(BIN)/python -m pytest -q $(PARALLEL) -m 'not kills and not races and not impaired and not story' $(TESTS)

test-impaired: $(STAMP)
	$(BIN)/python -m pytest -q -m impaired $(TESTS)

story: $(STAMP)
	SHOAL_STORY=/dev/stdout $(BIN)/python -m pytest -q -s -m story tests/integration/test_story.py

test-kills: $(STAMP)
	$(BIN)/python -m pytest -q -m kills $(TESTS)

relay-kills: $(STAMP)
	SHOAL_RELAY_KILLS=100 $(BIN)/python -m pytest -q -s --timeout 3600 -o faulthandler_timeout=0 $(TESTS) tests/integration/test_relay_kills.py

test-relay-story: $(STAMP)
	$(BIN)/python -m pytest -q -s -m story $(TESTS) tests/integration/test_relay_story.py

test-races: $(STAMP)
	$(BIN)/python -m pytest -q -m races $(TESTS)

test-crashes: $(STAMP)
	SHOAL_CRASHES=all $(BIN)/python -m pytest -q --timeout 3600 $(TESTS) tests/node/sync/test_crash_points.py

test-meetings: $(STAMP)
	SHOAL_MEETINGS=all $(BIN)/python -m pytest -q $(TESTS) tests/integration/test_section4_table.py

power-cuts: $(STAMP)
	SHOAL_POWER_CUTS=1000 SHOAL_POWER_CUTS_PROCESSES=40 $(BIN)/python -m pytest -q -s -o faulthandler_timeout=0 $(TESTS) tests/integration/test_power_cuts.py

test-editors: $(STAMP)
	SHOAL_EDITOR_TURNS=10 $(BIN)/python -m pytest -q $(TESTS) tests/integration/test_editors.py

simulate: $(STAMP)
	@$(BIN)/python -m simulations $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),200))

mutants: $(STAMP)
	@nice $(BIN)/python -m simulations.hunt $(if $(SEEDS),--seeds $(SEEDS))

fuzz: $(STAMP)
	@$(BIN)/python -m tests.fuzz $(or $(SECONDS),60) $(SEED)

test-plans: $(STAMP)
	@$(BIN)/python -m tests.plans $(or $(SECONDS),60) $(SEED)

test-fast: $(STAMP)
	$(BIN)/python -m pytest -q $(PARALLEL) -m 'not slow and not races' $(TESTS)

bench: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	$(BIN)/python -m benchmarks

bench-quick: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r benchmarks/requirements.lock
	$(BIN)/python -m benchmarks --scale 20 --quick

bench-relay: $(STAMP)
	$(BIN)/python -m benchmarks.relay_load

check: check-format check-lint check-types check-imports test-fast

check-format: $(STAMP)
	$(BIN)/ruff format --check .

check-lint: $(STAMP)
	$(BIN)/ruff check .

check-types: $(STAMP)
	$(BIN)/python -m mypy

check-imports: $(STAMP)
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Needs pip-tools, which is no part of the lock: python -m pip install pip-tools
lock:
	{ head -2 requirements.lock; $(PYTHON) -m piptools compile --quiet --generate-hashes --extra dev \
		--all-build-deps --allow-unsafe --strip-extras --no-header --no-emit-options --no-emit-index-url \
		--no-emit-trusted-host --no-emit-find-links --output-file - pyproject.toml; } > requirements.new
	mv requirements.new requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
