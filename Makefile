# make demo    three gateways on this machine that fail while traffic flows, and a report for a browser
# make test    run all tests; those that need root or /dev/net/tun say so where they are skipped
# make check   lint, format, strict types, documentation with warnings as errors, the ring table
# make docs    the documentation, in docs/_build/html
# make bench   the benchmarks, and the tunnel beside none; make bench PEERS=openvpn,wireguard-go beside those too,
#              which it installs if they are missing (apt-get)
# make faults  what failover costs: TRIALS (20) of each fault, heartbeats counted for a minute in each mode, and for
#              a minute at saturation, where no gateway may be left (20 minutes)
#
# Everything runs in .venv, which the first target makes and a change of setup.cfg renews.
# Another interpreter: make PYTHON=python3.12 test. A part of the tests: make TESTS=tests.unit test.

# The system's own Python first, if it will do: distributions build theirs with PGO and LTO, which not everything
# called python3 is, and without which all of rvpn takes a third longer.
PYTHON ?= $(shell for each in /usr/bin/python3 python3; do \
    $$each -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && exit; \
    done; echo python3)
TESTS ?= tests
TRIALS ?= 20
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check lint types docs rings bench faults clean

demo: $(INSTALLED)
	@$(BIN)/rvpn lab demo

test: $(INSTALLED)
	@$(BIN)/python -m twisted.trial $(TESTS)

check: lint types docs rings

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)
	@$(BIN)/mypy --config-file setup.cfg

docs: $(INSTALLED)
	@$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo "documentation: docs/_build/html/index.html"

rings: $(INSTALLED)
	@$(BIN)/python -m twisted.trial tests.unit.test_rings

bench: $(INSTALLED)
	@for bench in benchmarks/bench_*.py; do \
	    echo "== $$bench"; timeout 600 $(BIN)/python $$bench || exit 1; \
	done
	@echo "== rvpn lab bench"
	@timeout 1800 $(BIN)/rvpn lab bench $(if $(PEERS),--install --peers $(PEERS))

faults: $(INSTALLED)
	@$(BIN)/rvpn lab failover --fault all --trials $(TRIALS)
	@$(BIN)/rvpn lab heartbeats --seconds 60
	@$(BIN)/rvpn lab bench --saturate 60

clean:
	rm -rf rvpn-demo.html $(VENV) build dist docs/_build _trial_temp* .mypy_cache .ruff_cache .hypothesis .coverage* *.egg-info
	find rvpn tests twisted benchmarks -name __pycache__ -prune -exec rm -rf {} +

# An editable install in compat mode: twistd finds the plugins from any directory, and no test runs stale code.
$(INSTALLED): setup.cfg pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	    echo "rvpn needs Python 3.11 or newer, and there is no $(PYTHON) here. On Debian and Ubuntu:"; \
	    echo "    apt-get install python3 python3-venv"; exit 1; } >&2
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "rvpn needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). With a newer one installed:"; \
	    echo "    make PYTHON=python3.11 test"; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu:"; \
	    echo "    apt-get install python3-venv"; exit 1; } >&2
	@echo "Installing rvpn and its tools into $(VENV) (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --quiet --disable-pip-version-check \
	    --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@
