# Copyright (c) The labspan.vmnet authors
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# Everything is found through the checkout: programs in the newest environment, the collection by its full name.
export PATH := $(CURDIR)/.venv/newest/bin:$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(CURDIR)/.build/collections
export ANSIBLE_PIPELINING := true
export ANSIBLE_LOCALHOST_WARNING := false
export ANSIBLE_HOME := $(CURDIR)/.build/ansible
unexport PYTHONPATH ANSIBLE_CONFIG

# Network namespaces, taps and firewall tables belong to root.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=PATH,ANSIBLE_COLLECTIONS_PATH,ANSIBLE_PIPELINING,ANSIBLE_LOCALHOST_WARNING,ANSIBLE_HOME,LABSPAN_TEST_INTERPRETERS,LABSPAN_SEED,LABSPAN_POWER_CUTS,CI)

SCENARIOS ?= private routed nat l2
PYTEST_ARGS ?=
BENCHMARK_ARGS ?=
, := ,
say = @printf '\n\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 24

.PHONY: setup
setup: ## Install what the tests need: Debian packages, and Python environments in .venv
	@tests/setup.sh

.PHONY: quickstart
quickstart: ## Bring up a NAT lab with two guests in a namespace of its own, and prove it
	@tests/setup.sh quickstart
	@$(AS_ROOT) tests/lab/labctl up quickstart labhost --tiny-guest
	@$(AS_ROOT) env ANSIBLE_CALLBACK_RESULT_FORMAT=yaml ansible-playbook -i playbooks/inventory/quickstart.yml playbooks/quickstart.yml
	@printf '%s\n' '' \
		'The lab runs. To look around (as root):' \
		'  tests/lab/labctl shell quickstart labhost                  a shell on the lab host: ip -d -j address, bridge link,' \
		'                                                             nft list table inet labspan_quickstart, ps' \
		'  tests/lab/labctl shell quickstart labhost socat -,raw,echo=0,escape=0x1d UNIX:/run/labspan/guests/vm1/console.sock' \
		'                                                             the console of vm1; Ctrl-] leaves it' \
		'  tests/lab/labctl shell quickstart lan                      a shell in the LAN' \
		'make quickstart again finds nothing to change; make clean takes it all down.'

.PHONY: clean
clean: ## Take down the quickstart's lab
	@$(AS_ROOT) tests/lab/labctl down quickstart
	@rm -rf .build/sanity .build/galaxy

.PHONY: test
test: ## Run all checks, cheapest first: set-up, lint, unit, integration, molecule
	@for step in setup lint unit integration molecule; do \
		$(MAKE) "$$step"; \
	done; \
	printf '\nAll checks passed in %d minutes.\n' "$$(( SECONDS / 60 ))"

.PHONY: test-all
test-all: test sweeps sanity-all benchmark ## Run everything there is: the long sweeps, every ansible-core's sanity tests, the benchmark

# Lint: independent steps side by side, each printed whole when it ends.

SANITY := sanity-pylint sanity-imports-oldest sanity-imports-newest sanity-rest
LINTERS := $(SANITY) lint-ansible lint-mypy lint-galaxy lint-docs lint-ruff lint-yaml lint-changelog lint-licences

.PHONY: lint
lint: ## Check style, types, documentation, licences, packaging, and run ansible-test sanity
	$(call say,lint)
	@$(MAKE) --jobs=$$(nproc) --output-sync=target --keep-going $(LINTERS)

.PHONY: $(LINTERS)
lint-ruff:
	@echo "-- ruff"
	@ruff check --quiet .
	@ruff format --quiet --check . || { ruff format --check .; exit 1; }

lint-mypy:
	@echo "-- mypy --strict"
	@packages=(); for package in module_utils modules connection filter inventory action plugin_utils; do \
		if compgen -G "plugins/$$package/*.py" >/dev/null; then packages+=(-p "ansible_collections.labspan.vmnet.plugins.$$package"); fi; \
	done; mypy "$${packages[@]}"

lint-yaml:
	@echo "-- yamllint"
	@yamllint --strict .

lint-ansible:
	@echo "-- ansible-lint"
	@# It installs the collection for itself, and would go on with the old one after a change.
	@rm -rf .build/lint
	@ANSIBLE_HOME=$(CURDIR)/.build/lint ansible-lint -q --nocolor

lint-docs:
	@echo "-- antsibull-docs lint-collection-docs"
	@antsibull-docs lint-collection-docs --plugin-docs --validate-collection-refs=all .

lint-changelog:
	@echo "-- antsibull-changelog lint"
	@antsibull-changelog lint

lint-licences:
	@echo "-- reuse lint"
	@reuse lint --lines

lint-galaxy:
	@echo "-- ansible-galaxy collection build, galaxy-importer"
	@tests/galaxy.sh

# Imports and compilation: of managed hosts on the oldest Python, and of the controller's parts on its own.
sanity-imports-oldest sanity-imports-newest: sanity-imports-%:
	@echo "-- ansible-test sanity: imports on $$(.venv/$*/bin/python -V)"
	@tests/sanity.sh imports "$$(.venv/$*/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')"

sanity-pylint sanity-rest: sanity-%:
	@echo "-- ansible-test sanity: $*"
	@tests/sanity.sh "$*"

.PHONY: sanity-all
sanity-all: ## Run ansible-test sanity of each ansible-core, on every Python that is here
	@for core in .venv/core-*; do echo "-- ansible-test sanity, $$core"; LABSPAN_CORE="$$core" tests/sanity.sh; done

# Each ansible-core, and the oldest managed host (Python 3.9 where there is one, pyroute2 0.7.2), side by side. What is
# in module_utils hardly knows ansible-core: the newest and the oldest Python are enough for it.

UNITS := unit-core-2.21 unit-core-2.19 unit-oldest

.PHONY: unit
unit: ## Run the unit tests on each ansible-core, and what managed hosts run on the oldest Python and pyroute2
	$(call say,unit tests)
	@$(MAKE) --jobs=$$(nproc) --output-sync=target --keep-going $(UNITS)

.PHONY: $(UNITS)
unit-core-2.19: UNITS_OF := --ignore=tests/unit/plugins/module_utils
unit-core-2.21 unit-core-2.19: unit-core-%:
	@[ ! -x ".venv/core-$*/bin/pytest" ] || { echo "-- ansible-core $*"; ".venv/core-$*/bin/python" -m pytest -q tests/unit $(UNITS_OF) $(PYTEST_ARGS); }

unit-oldest:
	@echo "-- module_utils on $$(.venv/oldest/bin/python -V) and pyroute2 0.7.2"
	@.venv/oldest/bin/python -m pytest -q tests/unit/plugins/module_utils $(PYTEST_ARGS)

# The tests wait more than they compute: one more at a time than there are cores. In our order: the longest first, which is
# not the file with the most tests.
PARALLEL := -n $(shell echo $$(( $$(nproc) + 1 ))) --dist loadfile --no-loadscope-reorder
# What depends on the controller's version, or on the libraries of the managed host: pyroute2 speaks for links.
VERSIONED := $(addprefix tests/integration/,links firewall/test_nat.py dhcp lab scenarios/test_scenarios.py uplink/test_move.py uplink/test_over_ssh.py)

.PHONY: integration
integration: ## Run the integration tests in namespaces: newest ansible-core and pyroute2, then the oldest of both
	$(call say,integration tests: newest ansible-core; the newest pyroute2 and the system's)
	@$(AS_ROOT) .venv/newest/bin/python -m pytest -q $(PARALLEL) -m "not slow" tests/integration $(PYTEST_ARGS)
	$(call say,integration tests: ansible-core 2.19; $$(.venv/oldest/bin/python -V) and pyroute2 0.7.2)
	@LABSPAN_TEST_INTERPRETERS=$(CURDIR)/.venv/oldest/bin/python \
		$(AS_ROOT) .venv/core-2.19/bin/python -m pytest -q $(PARALLEL) -m "not slow" $(VERSIONED) $(PYTEST_ARGS)

.PHONY: sweeps
sweeps: ## Run the integration tests that take too long for every day, those on a VM host among them
	@tests/setup.sh
	$(call say,long sweeps)
	@$(AS_ROOT) .venv/newest/bin/python -m pytest -q $(PARALLEL) -m slow tests/integration --ignore=tests/integration/vm $(PYTEST_ARGS)
	$(call say,long sweeps on a VM host)
	@$(AS_ROOT) .venv/newest/bin/python -m pytest -q -m slow tests/integration/vm $(PYTEST_ARGS)

.PHONY: molecule
molecule: ## Run the scenarios with real guests: create, converge, idempotence, verify, destroy
	@echo "Molecule calls it critical that there is no scenario named default, and goes on; only its exit status counts."
	@for scenario in $(SCENARIOS); do \
		printf '\n\033[1m== molecule: %s\033[0m\n' "$$scenario"; \
		$(AS_ROOT) molecule test --scenario-name "$$scenario"; \
	done

.PHONY: benchmark
benchmark: ## Measure the modules against the notes' commands and Ansible's own cost, side by side
	@tests/setup.sh
	@$(AS_ROOT) .venv/newest/bin/python tests/benchmark/run.py $(BENCHMARK_ARGS)

.PHONY: docs
docs: ## Render the documentation of modules and roles to .build/docs
	@tests/setup.sh
	@mkdir -p .build/docs
	@antsibull-docs sphinx-init --use-current --squash-hierarchy --dest-dir .build/docs labspan.vmnet
	@antsibull-docs collection --use-current --squash-hierarchy --dest-dir .build/docs/rst labspan.vmnet
	@echo "reStructuredText is in .build/docs/rst; .build/docs/build.sh makes HTML of it once its requirements.txt is installed"
