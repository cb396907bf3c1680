# Every task of the project under one name. Each target sets up what it needs first (scripts/setup.sh): a fresh
# Debian 12 with git, make, a compiler and Python 3.11 will do.

PYTHON ?= python3
export PYTHON

venv := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help run test bench bench-quick bench-compare peers lint format native-test sanitize sim fuzz sigkill
.PHONY: mutants dialect
.PHONY: python-test clean wheel wheel-test setup-run setup-bench setup-test

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter (3.11 or newer)"

run: setup-run ## measure one big lock against a lock for each node, on this machine: about a minute
	$(venv)/engine run bench/experiments/big-lock.toml

test: setup-test ## everything: native tests, sanitizers, fuzzers, coroutine dialect, Python tests, lint
	$(venv)/python scripts/run_tests.py

native-test: setup-test ## the native tests, with their assertions
	$(venv)/python scripts/run_tests.py native

sanitize: setup-test ## the native tests under ASan+UBSan and under TSan
	$(venv)/python scripts/run_tests.py asan tsan

sim: setup-test ## the simulator and its known bugs: SEEDS=10000 seeds from FROM=0 on; SEED=123: one, operation by operation
	$(venv)/python scripts/sim.py $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),1000) --from $(or $(FROM),0))

fuzz: setup-test ## the fuzzers, TIME=60s each and two at a time; SEED=… repeats, FUZZ="options virtqueue" chooses
	$(venv)/python scripts/fuzz.py --time $(or $(TIME),60s) $(if $(SEED),--seed $(SEED)) $(FUZZ)

sigkill: setup-test ## kills RUNS=300 processes at work and looks at what they leave behind
	SIGKILL_RUNS=$(or $(RUNS),300) $(venv)/python -m pytest -q -s tests/interop/test_durability.py -k killed

mutants: setup-test ## changes COUNT=200 places of the core, one at a time, and looks which tests notice (an hour)
	$(venv)/python scripts/mutate.py --count $(or $(COUNT),200) --seed $(or $(SEED),1)

dialect: setup-test ## the coroutine dialect on every compiler and mode
	$(venv)/python scripts/run_tests.py dialect

python-test: setup-test ## the Python tests
	$(venv)/python scripts/run_tests.py python

lint: setup-test ## ruff, mypy, clang-format, clang-tidy
	$(venv)/python scripts/run_tests.py lint

format: setup-test ## rewrite the sources as the linters want them
	$(venv)/python scripts/run_tests.py format

bench: setup-bench ## side by side with other programs, nine pairs each (about 25 minutes); BENCH="-k null" chooses
	$(venv)/python -m pytest bench $(BENCH)

bench-quick: setup-bench ## the same, short: shows that all of it works; not figures to quote
	$(venv)/python -m pytest bench --quick $(BENCH)

peers: ## make the Debian 13 root that holds the newest QEMU (once; needs root and the network)
	bench/peers/debian13.sh

bench-compare: setup-bench ## the drift between two commits, or two stored files: A=… B=…
	@test -n "$(A)" -a -n "$(B)" || { echo "usage: make bench-compare A=COMMIT B=COMMIT" >&2; exit 2; }
	$(venv)/python bench/compare.py $(A) $(B)

wheel: setup-run ## dist/: a wheel that carries liburing, for Pythons like this one
	scripts/wheel.sh

wheel-test: wheel ## runs it in a bare Debian 12, without compiler or liburing (needs root; not a part of make test)
	scripts/wheel_test.sh

setup-run setup-bench setup-test: setup-%:
	@scripts/setup.sh $*

clean: ## remove builds and the virtual environment; results stay
	rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
