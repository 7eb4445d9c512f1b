PYTHON ?= python3
VENV ?= .venv
MINOR := -c 'import sys; print(*sys.version_info[:2], sep=".")'
RUN := $(VENV)/bin/python
# Bytecode is written when a module is first imported, or here where that is forbidden.
UV := $(RUN) -m uv pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode) --python $(RUN)
WORKDIR ?= runs/quickstart
QUICKSTART := main.py --config=configs/quickstart.py --workdir=$(WORKDIR)

.PHONY: help install hooks demo reproduce-small notebooks site lint test test-slow lock clean

help:
	@echo "make demo     install, train on digits, sample, measure: a few minutes on a CPU"
	@echo "make reproduce-small   the tables of the paper at a small scale: hours on a CPU, resumable"
	@echo "make site     the documentation as a site: build/site/html/index.html"
	@echo "make notebooks   executes docs/notebooks into build/notebooks: some minutes on a CPU"
	@echo "make test     install, lint, check types, run the tests"
	@echo "make install  only make .venv: the locked dependencies, and this folder on its path;"
	@echo "              PYTHON=python3.13 chooses the Python: JAX 0.12 from 3.12 on, 0.10 with 3.11"
	@echo "make hooks    let ruff, mypy and a check of large files look at every commit"

install: $(VENV)/.installed
ifneq ($(origin PYTHON),file)
	@had=$$($(RUN) $(MINOR)) wanted=$$($(PYTHON) $(MINOR)); test "$$had" = "$$wanted" || \
		{ echo "error: $(VENV) is of Python $$had, not $$wanted; make clean, or give another: VENV=.venv$$wanted"; exit 1; }
endif

$(VENV)/.installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give a newer one: make PYTHON=python3.13"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet uv 2>/dev/null && $(UV) --requirement requirements.lock 2>/dev/null || \
		{ echo "uv is of no use here: pip installs, in four times the time"; \
		$(RUN) -m pip install --quiet --requirement requirements.lock; }
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(RUN) -c "from models.ops import native; native.available()"  # builds them, once
	@touch $@

demo: install
	$(RUN) $(QUICKSTART) --mode=train
	$(RUN) $(QUICKSTART) --mode=eval

reproduce-small: install
	$(RUN) -m benchmarks.reproduction --workdir=runs/small

site: install
	$(RUN) -m pip install --quiet --no-build-isolation --editable '.[docs]'
	$(RUN) -m docs.site

notebooks: install
	$(RUN) -m pip install --quiet --no-build-isolation --editable '.[notebooks]'
	$(RUN) -m docs.notebooks

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy .

test: lint
	$(RUN) -m pytest -n 2 --dist loadfile

test-slow: install
	$(RUN) -m pytest -m slow

hooks: install
	$(RUN) -m pip install --quiet pre-commit
	$(RUN) -m pre_commit install

# One lock for every Python: where releases need a newer one than 3.11, it has both, with markers.
lock: install
	$(RUN) -m pip install --quiet uv
	$(RUN) -m uv pip compile pyproject.toml --extra data --extra metrics --extra native --extra test \
		--universal --python-version 3.11 --no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
