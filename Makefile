# `make demo` needs nothing but Python 3.11 or later: it makes .venv and installs into it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo ladder tutorial bench chaos soak slurm test thorough quick integrations gpu nightly mutants structure lint check clean

demo: .venv/.installed  ## a small study, from nothing to its report and a decision on the schedule
	$(BIN)/tuner run studies/digits.toml

ladder: .venv/.installed  ## how the best rate of digits moves with the horizon: ten minutes
	$(BIN)/tuner examples digits
	$(BIN)/tuner scale studies/digits.toml --to steps=1200 \
	    --set 'space.schedule="cosine"' --set 'space.optimizer="adamw"' --set space.lr.high=0.1

tutorial: .venv/.installed  ## run the tutorial's commands; write its pictures and numbers anew
	$(BIN)/python docs/tutorial/make.py

bench: export OMP_NUM_THREADS = 1
bench: .venv/.installed-dev  ## trials a second, alone and recorded, against loops by hand: an hour
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/throughput.py 64 --optimizer sgd
	$(BIN)/python benchmarks/service.py sqlite
	$(BIN)/python benchmarks/service.py postgresql

chaos soak: export OMP_NUM_THREADS = 1
chaos: .venv/.installed-dev  ## break the whole stack in every way we know: forty minutes, as root
	cd tests && ../$(BIN)/python -m chaos

soak: .venv/.installed-dev  ## everything at once for an hour: what the service holds stays level
	cd tests && ../$(BIN)/python -m chaos --soak 3600

# One thread each: the tests share the cores, and small models are faster without threads.
test thorough quick integrations nightly mutants: export OMP_NUM_THREADS = 1
# Compiled tests are kept, whatever the environment says: to rewrite their assertions takes 20 s.
test thorough quick integrations nightly mutants: export PYTHONDONTWRITEBYTECODE =
# A worker that has nothing left takes tests of another one; files stay together as far as that goes.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist worksteal

quick: .venv/.installed-dev  ## the tests that start no process and no server and take a tenth of a second at most
	$(PYTEST) -m 'not longer and not slow and not thorough and not nightly and not integrations and not gpu'

test: .venv/.installed-dev .venv/.chromium .venv/.pgbouncer .venv/.promtool  ## what to run before a push: 12 minutes
	$(PYTEST) -m 'not thorough and not nightly and not integrations and not gpu'

thorough: .venv/.installed-dev .venv/.chromium .venv/.pgbouncer .venv/.promtool  ## tests that take long, which CI runs too
	$(PYTEST) -m 'thorough and not nightly and not integrations and not gpu'

integrations: .venv/.installed-integrations .venv/.slurm .venv/.pgbouncer  ## adapters with their libraries; Ray; Slurm, as root
	$(PYTEST) -m 'integrations and not nightly' $(if $(filter 0,$(shell id -u)),,--ignore=tests/test_slurm.py)

slurm: .venv/.installed-dev .venv/.slurm  ## a study for each fault of a real Slurm, as root
	$(BIN)/python -m pytest -q tests/test_slurm.py

gpu: .venv/.installed-dev  ## the tests that need a GPU
	$(BIN)/python -m pytest -q -m gpu

nightly: .venv/.installed-dev .venv/.chromium .venv/.pgbouncer .venv/.promtool  ## the rest: tutorial, tour, chaos, pages, soak
	$(PYTEST) -m 'nightly and not integrations'
	cd tests && ../$(BIN)/python -m chaos --soak 600

mutants: .venv/.installed-dev  ## break the code in known ways; the quick tests must notice
	$(BIN)/python tests/mutants.py

lint: .venv/.installed-dev  ## format, lint, types and the directions of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

structure: .venv/.installed-dev  ## the package's rooms, their levels, and the imports between them
	$(BIN)/python benchmarks/structure.py

check: lint  ## everything that must hold before a commit
	$(MAKE) test

clean:  ## what `make` made; databases and reports stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	    .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) -e .
	touch $@

# The browser of the tests: one that is here, Debian's where we may install it, else Playwright's.
.venv/.chromium: .venv/.installed-dev
	command -v "$${TUNER_TEST_CHROMIUM:-chromium}" || command -v chromium-browser \
	    || command -v google-chrome || command -v google-chrome-stable \
	    || { [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -q \
	        && apt-get install -q -y chromium; } \
	    || $(BIN)/playwright install chromium
	touch $@

# The connection pooler of the tests: one that is here, or Debian's where we may install it.
.venv/.pgbouncer: .venv/.installed-dev
	PATH="$$PATH:/usr/sbin" command -v pgbouncer \
	    || { [ "$$(id -u)" = 0 ] && command -v apt-get && apt-get update -q \
	        && apt-get install -q -y --no-install-recommends pgbouncer; }
	touch $@

# Prometheus's test of rules: one that is here, or that of Debian's package, which is not installed.
.venv/.promtool: .venv/.installed-dev
	command -v promtool || test -x $(BIN)/promtool || { \
	    { [ "$$(id -u)" != 0 ] || apt-get update -q; } && cd .venv && apt-get download -q prometheus \
	        && dpkg-deb --fsys-tarfile prometheus_*.deb \
	        | tar -x -C bin --strip-components=3 ./usr/bin/promtool && rm prometheus_*.deb; }
	touch $@

# The engine of the tests that run workers on a cluster; only root can start it.
.venv/.slurm: .venv/.installed-dev
	command -v slurmctld || [ "$$(id -u)" != 0 ] || { apt-get update -q \
	    && apt-get install -q -y --no-install-recommends slurm-wlm munge; }
	touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -e '.[dev]'
	touch $@

.venv/.installed-integrations: .venv/.installed-dev
	$(PIP) -e '.[dev,integrations]'
	touch $@
