# Edgeship. `make help` lists the targets.

RECIPE ?= models/recipes/digits_mobilenet_v2.yaml
DEVICE ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && { echo $$p; break; }; done)
# Tests of one file share what they set up, so they stay in one process. Where one of the processes ends, the tests end:
# with another in its place pytest-xdist waits forever for files that were done.
PARALLEL ?= --numprocesses 2 --dist loadfile --max-worker-restart 0
DEVICE_OPTION := $(if $(DEVICE),--device $(DEVICE))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@echo "make TARGET [RECIPE=$(RECIPE)] [DEVICE=NAME] [ARGS='--set train.epochs=3 ...']"; echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv and install what the lock file names

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found. Install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) has no venv module; on Debian: apt install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: setup ## Train, export, verify and measure the digits network: the whole job
	$(BIN)/edgeship run models/recipes/digits_mobilenet_v2.yaml $(DEVICE_OPTION) $(ARGS)

.PHONY: build
build: setup ## Train and calibrate the network of RECIPE
	$(BIN)/edgeship run $(RECIPE) --until calibrate $(ARGS)

.PHONY: train
train: setup ## Train RECIPE, or try that out: ARGS=--dry-run, ARGS=--find-learning-rate
	$(BIN)/edgeship train $(RECIPE) $(ARGS)

.PHONY: export
export: setup ## Export RECIPE to every target and precision and verify the files
	$(BIN)/edgeship run $(RECIPE) --until verify $(DEVICE_OPTION) $(ARGS)

.PHONY: compile
compile: setup ## Compile the exported models of RECIPE for DEVICE, and say what that saves at a start
	$(BIN)/edgeship compile $(RECIPE) $(DEVICE_OPTION) $(ARGS)

.PHONY: bench
bench: setup ## Measure the exported models of RECIPE on DEVICE
	$(BIN)/edgeship run $(RECIPE) --until benchmark $(DEVICE_OPTION) $(ARGS)

MODELS ?= $$(ls -d runs/$(basename $(notdir $(RECIPE)))/artifacts/export-*/model.* | grep -E '[.](tflite|onnx|xml|fake)$$')

.PHONY: bench-regression
bench-regression: setup ## Measure RECIPE's models, or MODELS, anew; fail where one is slower than at the last commit
	$(if $(filter file,$(origin MODELS)),$(BIN)/edgeship run $(RECIPE) --until export $(DEVICE_OPTION))
	$(BIN)/edgeship bench $(MODELS) --sessions 8 --min-time 0.5 --precision 0 $(DEVICE_OPTION) $(ARGS)
	$(BIN)/edgeship results compare --fail-on-slowdown

.PHONY: bench-int8
bench-int8: setup ## Measure int8 beside float32 and the converters' defaults, of seven networks
	$(BIN)/edgeship bench-int8 $(DEVICE_OPTION) $(ARGS)

.PHONY: deploy
deploy: setup ## Put the selected model of RECIPE onto DEVICE
	$(BIN)/edgeship deploy $(RECIPE) $(DEVICE_OPTION) $(ARGS)

.PHONY: report
report: setup ## Run what is missing of RECIPE and print its report
	$(BIN)/edgeship run $(RECIPE) $(DEVICE_OPTION) $(ARGS)

.PHONY: check
check: setup ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: setup ## Format and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: test
test: setup ## Pass the tests
	$(BIN)/pytest -m "not slow" $(PARALLEL) $(ARGS)

.PHONY: test-slow
test-slow: setup ## Pass the tests that take longer than ten seconds each
	$(BIN)/pytest -m slow $(PARALLEL) $(ARGS)

.PHONY: test-faults
test-faults: setup ## Break installations in every way: killed, cut off, no room, tampered with, not well; a fleet of 1,000
	$(BIN)/pytest tests/faults $(ARGS)

TFLITE_VENV := .venv-tflite-runtime
TFLITE_PYTHON ?= $(shell for p in python3.11 python3.10 python3.9 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 11))' \
	2>/dev/null && { echo $$p; break; }; done)

.PHONY: test-tflite-runtime
test-tflite-runtime: setup ## Run the board agent with tflite-runtime and NumPy 1, in an environment of their own
	@test -n "$(TFLITE_PYTHON)" || { echo "tflite-runtime needs Python 3.9 to 3.11, and none was found" >&2; exit 2; }
	@$(TFLITE_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(TFLITE_PYTHON) -m venv --clear $(TFLITE_VENV)
	$(TFLITE_VENV)/bin/python -m pip install --quiet --require-hashes -r devices/requirements/tflite-runtime.lock
	EDGESHIP_TFLITE_RUNTIME_PYTHON=$(TFLITE_VENV)/bin/python $(BIN)/pytest tests/board/test_tflite_runtime.py $(ARGS)

.PHONY: board
board: setup ## Build the virtual boards, arm64 and armhf, in the cache (Linux, as root)
	$(BIN)/edgeship devices virtual build $(ARGS)

.PHONY: test-board
test-board: board ## Test on the virtual boards through SSH
	$(BIN)/pytest tests/board/test_virtual_releases.py tests/board/test_virtual_boards.py $(ARGS)

.PHONY: test-systemd
test-systemd: setup ## Test the service under a live systemd, in namespaces of this machine (Linux, as root)
	$(BIN)/pytest tests/board/test_systemd.py $(ARGS)

.PHONY: adb
adb: ## Install adb, Android's debug bridge, where it is missing (Debian, as root)
	@command -v adb >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends adb; } || \
		{ echo "adb is missing; on Debian or Ubuntu: sudo apt-get install adb" >&2; exit 2; }

.PHONY: test-phone
test-phone: setup adb ## Test phones with the real adb client and a phone that this machine plays
	$(BIN)/pytest tests/board/test_phones.py tests/board/test_phone_releases.py $(ARGS)

.PHONY: lock
lock: setup ## Write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements.lock
	$(BIN)/uv pip compile devices/requirements/tflite-runtime.in --universal --python-version 3.9 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file devices/requirements/tflite-runtime.lock

.PHONY: clean
clean: ## Remove runs, the artifact store and caches
	rm -rf runs .edgeship build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## Remove .venv as well
	rm -rf $(VENV) .venv-*
