# Every target sets up what it needs in .venv; a second call finds it done.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip
JOBS   ?= 2

ORACLES = fla-core flash-linear-attention flashrnn mlstm_kernels accelerated_scan

.PHONY: demo test test-slow test-versions lint golden bench docs clean

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py

test: lint $(VENV)/.oracles
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy

test-slow: $(VENV)/.oracles
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow or not slow"

ifneq ($(wildcard tests/versions/run.py),)
# the emitted source of every example under each supported triton
test-versions: $(VENV)/.oracles
	$(BIN)/python tests/versions/run.py
endif

# write printed stages and emitted kernels anew: look at the diff before committing it
golden: $(VENV)/.oracles
	$(BIN)/python -m pytest tests --update-golden -k golden

# site/: the pages of docs/, those that the compiler knows made anew; a link that leads nowhere fails
docs: $(VENV)/.docs
	$(BIN)/python docs/make_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/.ready
	$(BIN)/mixc bench simple_gla

# torch first and by itself: nothing after it may replace the build that was found
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "mixc needs Python 3.11 or newer; this is `$(PYTHON) --version`. Try: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q $$(grep '^torch==' constraints.txt)
	$(PIP) install -q -c constraints.txt -e '.[test,demo]'
	touch $@

$(VENV)/.oracles: $(VENV)/.ready
	$(PIP) install -q -c constraints.txt --no-deps $(ORACLES)
	$(PIP) install -q -c constraints.txt einops packaging omegaconf
	touch $@

$(VENV)/.docs: $(VENV)/.oracles
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist out site .mypy_cache .ruff_cache .pytest_cache .hypothesis
