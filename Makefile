PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
WORKDIR ?= runs/quickstart
QUICKSTART := main.py --config=configs/quickstart.py --workdir=$(WORKDIR)

.PHONY: help install demo reproduce-small lint test test-slow lock clean

help:
	@echo "make demo     install, train on digits, sample, measure: a few minutes on a CPU"
	@echo "make reproduce-small   the tables of the paper at a small scale: hours on a CPU, resumable"
	@echo "make test     install, lint, check types, run the tests"
	@echo "make install  only make .venv with the locked dependencies"

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give a newer one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.lock
	@touch $@

demo: install
	$(RUN) $(QUICKSTART) --mode=train
	$(RUN) $(QUICKSTART) --mode=eval

reproduce-small: install
	$(RUN) -m benchmarks.reproduction --workdir=runs/small

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

test: lint
	$(RUN) -m pytest -n 2

test-slow: install
	$(RUN) -m pytest -m slow

lock: install
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip compile pyproject.toml --extra test --universal --python-version 3.11 \
		--no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
