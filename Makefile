# Everything a person needs: `make serve` and `make test` set up what they use, and may be run again at any time.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help serve test check lint format protos reference dashboards bench chromium prometheus clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 16

serve: $(VENV)/.installed  ## Set up what is missing and serve on 127.0.0.1:8000 (HTTP) and :9000 (gRPC)
	@$(BIN)/polyhead serve

test: $(VENV)/.installed-dev chromium prometheus  ## Set up what is missing and run all tests
	@$(BIN)/python -m pytest

check: lint test  ## What CI runs: linters, types, tests

lint: $(VENV)/.installed-dev  ## Linters and the type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/.installed-dev  ## Format the code and mend what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

protos: $(VENV)/.installed-dev  ## Make the gRPC stubs anew from serving/protos/segmentation.proto
	@$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. \
	  serving/protos/segmentation.proto

dashboards: $(VENV)/.installed-dev  ## Write Grafana's dashboards anew from deploy/grafana
	@$(BIN)/python -m deploy.grafana

reference: $(VENV)/.installed-dev  ## Write the parts of docs/ that come from the code
	@$(BIN)/python docs/reference.py

bench: $(VENV)/.installed  ## Measure sharing and serving on this machine; writes loadtests/results
	@$(BIN)/python -m loadtests.sharing

chromium:  # for the playground's test, which skips without it
	@command -v chromium >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Chromium for the playground's test …"; \
	    apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null || true; \
	  else echo "no chromium here: the playground's test will skip"; fi; }

prometheus:  # for the tests of rules and dashboards, which skip without it
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Prometheus for the tests of rules and dashboards …"; \
	    apt-get -qq update && apt-get -qq install -y --no-install-recommends prometheus >/dev/null || true; \
	    systemctl disable --now prometheus 2>/dev/null || true; \
	  else echo "no prometheus here: the tests of rules and dashboards will skip"; fi; }

clean:  ## Remove the environment and all caches of this checkout
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "error: Python 3.11 or newer is needed; '$(PYTHON)' is not (set PYTHON=python3.12, say)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing Python's venv module …"; apt-get -qq update && apt-get -qq install -y python3-venv; \
	  else echo "error: Python's venv module is missing; install it (Debian, Ubuntu: python3-venv)" >&2; exit 1; fi; }
	@echo "making an environment in $(VENV) …"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing polyhead and what it needs into $(VENV) (a few minutes the first time) …"
	@$(PIP) install --constraint constraints.txt --editable . \
	  || { echo "error: installing failed; the lines above say why" >&2; exit 1; }
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need …"
	@$(PIP) install --constraint constraints.txt --editable '.[dev]' \
	  || { echo "error: installing failed; the lines above say why" >&2; exit 1; }
	@touch $@
