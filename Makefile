# Everything a developer runs. Each target sets up what it needs; `make help` lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PACKAGES := crds/cloister_api operator/cloister_operator trainer/cloister_trainer
PYTHON_SOURCES := crds operator trainer tests scripts benchmarks examples
SHELL_SOURCES := .ci/run $(wildcard scripts/*.sh)
HAS_GPU := $(shell nvidia-smi --list-gpus >/dev/null 2>&1 && echo yes)
MARKERS := not soak$(if $(HAS_GPU),, and not gpu)
PYTEST_ARGS ?=

##@ Every day

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} \
	  /^##@ / {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z][a-z0-9-]*:.*## / {printf "  %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Make .venv from the locked requirements; nothing happens when it is up to date
	@scripts/setup.sh

.PHONY: format
format: setup ## Format the code and repair what ruff can repair
	$(BIN)/ruff format $(wildcard $(PYTHON_SOURCES))
	$(BIN)/ruff check --fix $(wildcard $(PYTHON_SOURCES))

.PHONY: generate
generate: setup ## Write the CRD, the reference pages and the chart's copies from the models
	$(BIN)/python -m cloister_api.generate
	$(BIN)/python -m cloister_operator.settings_page
	$(BIN)/python -m cloister_trainer.models_page
	$(BIN)/python scripts/chart_files.py

.PHONY: golden
golden: setup control-plane-binaries ## Write the children of the jobs in tests/golden/operator, and what the chart renders
	@PYTHONPATH=tests $(BIN)/python -m support.operator_golden
	@PYTHONPATH=tests $(BIN)/python -m support.chart

SETTINGS ?= operator/manifests/settings.yaml
.PHONY: run-operator
run-operator: setup ## Run the operator against the current kubeconfig, with the settings in SETTINGS
	@$(BIN)/python -m cloister_operator --settings $(SETTINGS)

.PHONY: quickstart
quickstart: setup ## Fine-tune a small model on this machine, from a manifest to a verified adapter in an S3 store
	@PYTHONPATH=tests $(BIN)/python scripts/quickstart.py

.PHONY: store
store: setup ## Start the quickstart's store again, until Ctrl-C
	@PYTHONPATH=tests $(BIN)/python scripts/store.py

.PHONY: control-plane
control-plane: setup ## Start a real Kubernetes control plane with KubeRay, Kueue and GPU nodes without machines, until Ctrl-C
	@PYTHONPATH=tests $(BIN)/python -m cluster.control_plane

.PHONY: control-plane-binaries
control-plane-binaries: setup ## Build the control plane's programs into the user's cache; nothing happens when they are there
	@PYTHONPATH=tests $(BIN)/python -m cluster.control_plane.binaries

.PHONY: node-binaries
node-binaries: setup ## Build also kubelet, kube-proxy and CoreDNS; nothing happens when they are there
	@PYTHONPATH=tests $(BIN)/python -m cluster.control_plane.binaries --node

.PHONY: llama-cpp
llama-cpp: setup ## Build llama.cpp into the user's cache; nothing happens when it is there
	@PYTHONPATH=tests $(BIN)/python -m support.llama_cpp

.PHONY: node-setup
node-setup: ## Install containerd, runc, CNI plugins and the like where they are missing (Debian, as root)
	@scripts/node-setup.sh

.PHONY: cluster-up
cluster-up: node-setup node-binaries ## Start a real cluster of one node on this machine, as root; says how to use it
	@PYTHONPATH=tests $(BIN)/python -m e2e.cluster up

.PHONY: cluster-down
cluster-down: setup ## Stop that cluster; its objects and images stay for the next start
	@PYTHONPATH=tests $(BIN)/python -m e2e.cluster down

IMAGES ?= operator trainer store
# Of Python's standard library alone, so that no setup is needed.
IMAGES_PYTHON := PYTHONPATH=scripts $(firstword $(wildcard $(BIN)/python) python3)
.PHONY: images
images: ## Build the container images into .build/images; IMAGES=operator takes one (docs/images.md)
	@$(IMAGES_PYTHON) -m images build $(IMAGES)

.PHONY: images-test
images-test: images ## Build the images and try each as a pod runs it: read-only, without network
	@$(IMAGES_PYTHON) -m images test $(IMAGES)

##@ Checks

.PHONY: test
test: lint typecheck verify $(if $(findstring tests/,$(PYTEST_ARGS)),,control-plane-binaries) ## All checks and tests but those on a real cluster node
	$(BIN)/pytest -m "$(MARKERS)" $(PYTEST_ARGS)

.PHONY: test-cluster
test-cluster: setup control-plane-binaries ## Only the tests on a real Kubernetes control plane
	$(BIN)/pytest -m "$(MARKERS)" tests/cluster $(PYTEST_ARGS)

DOCKER := $(if $(filter e2e e2e-all,$(MAKECMDGOALS)),$(shell docker info >/dev/null 2>&1 && echo yes))
E2E := setup $(if $(CLOISTER_E2E_CONTEXT),,$(if $(DOCKER),control-plane-binaries,node-setup node-binaries) images)
E2E_TESTS = $(if $(findstring tests/,$(PYTEST_ARGS)),,tests/e2e) $(PYTEST_ARGS)
.PHONY: e2e
e2e: $(E2E) ## End to end on the cluster of CLOISTER_E2E_CONTEXT, else on kind's where docker answers, else on a real node here, as root
	$(BIN)/pytest -m "not full" $(E2E_TESTS)

.PHONY: e2e-all
e2e-all: $(E2E) ## Every scenario of the end-to-end tests
	$(BIN)/pytest $(E2E_TESTS)

.PHONY: soak
soak: setup llama-cpp ## The long tests
	$(BIN)/pytest -m soak $(PYTEST_ARGS)

.PHONY: lint
lint: setup ## Style, formatting, import contracts, shell scripts
	$(BIN)/ruff check $(wildcard $(PYTHON_SOURCES))
	$(BIN)/ruff format --check $(wildcard $(PYTHON_SOURCES))
	$(BIN)/lint-imports
	@for script in $(SHELL_SOURCES); do bash -n $$script || exit 1; done
	@if command -v shellcheck >/dev/null; then shellcheck $(SHELL_SOURCES); fi

.PHONY: typecheck
typecheck: setup ## mypy --strict
	$(BIN)/mypy $(PACKAGES)

.PHONY: verify
verify: setup ## Generated files are what the models generate
	$(BIN)/python -m cloister_api.generate --check
	$(BIN)/python -m cloister_operator.settings_page --check
	$(BIN)/python -m cloister_trainer.models_page --check
	$(BIN)/python scripts/chart_files.py --check

.PHONY: bench
bench: setup ## Measure against plain loops and other trainers, as ratios
	$(BIN)/python -m benchmarks

.PHONY: bench-operator
bench-operator: setup control-plane-binaries ## Measure the operator with thousands of jobs on a real Kubernetes control plane
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.operator_scale

.PHONY: bench-gpu
bench-gpu: setup ## Measure speed and memory of a model of 8B's shape on one GPU, and train on 2,000 rows there, killed twice
	@PYTHONPATH=tests:scripts $(BIN)/python -m benchmarks.gpu
	@PYTHONPATH=tests:scripts $(BIN)/python -m benchmarks.gpu_real

.PHONY: bench-real
bench-real: setup ## Train on 2,000 rows, killed twice and undisturbed, and write docs/real-run.md
	@PYTHONPATH=tests:scripts $(BIN)/python -m benchmarks.real_run

##@ Dependencies

.PHONY: lock
lock: setup ## Write requirements/*.txt from *.in, keeping the versions that still fit
	@scripts/lock.sh

.PHONY: upgrade
upgrade: setup ## Write requirements/*.txt with the newest versions that *.in allows
	@scripts/lock.sh --upgrade

.PHONY: clean
clean: ## Remove .venv and everything built
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
