.DELETE_ON_ERROR:
.PHONY: help setup setup-dev serve image check test test-fast crash-test bench client-wheel editor clean
.DEFAULT_GOAL := help

BIN := .venv/bin
# One worker more than there are cores, since tests wait for a fifth of the time. The longest files come first:
# tests/conftest.py.
WORKERS ?= $(shell echo $$(( $$(nproc) + 1 )))
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

help: ## List these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

serve: ## Set up what is missing, as root on Debian a Docker engine too, and serve on 127.0.0.1:8000
	@bash scripts/setup.sh
	@exec bash scripts/serve.sh

# VERSION: the tag, otherwise that of pyproject.toml.
image: ## Build the gateway's image, which compose.yaml runs: docs/operating.md
	@bash scripts/setup.sh
	@$(BIN)/python scripts/gateway_image.py $(VERSION)

setup: ## Put Cellblock and all that its checks and tests need into .venv
	@bash scripts/setup.sh dev clients

# Without other people's clients, which are most of what `setup` downloads.
setup-dev:
	@bash scripts/setup.sh dev

check: setup-dev ## Check format, lint, types and import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Status 3: no engine or browser, and none to be had. The tests then say what they skip, or fail where CI is set.
test: setup ## Run every test; as root on Debian it brings Docker and Chromium along
	@bash scripts/browser.sh || [ $$? -eq 3 ]
	@$(BIN)/python scripts/docker_engine.py start || [ $$? -eq 3 ]
	@if $(BIN)/python scripts/docker_engine.py answers; then $(BIN)/cellblock build; fi
	$(PYTEST) $(PYTEST_ARGS)

# Left out are the real kernels and bridges, Chromium, what installs packages, and what waits for time-outs: they take minutes. So is
# http_jupyter_client, which needs jupyter_server, one of the clients.
SLOW := $(addprefix --ignore=tests/integration/test_,$(addsuffix .py,\
	bash_kernel fork_server http_description_fuzz http_jupyter_client http_protocol http_unread http_ws_connections \
	jupyter_bridge jupyter_silence kernel_asyncio kernel_scripts kernel_shell kernel_workers process_environment \
	store_embedded store_lanes store_outages store_postgres store_quick_lane store_schema store_takeover store_tokens \
	supervisor_client_ids supervisor_crashes supervisor_kernel supervisor_life supervisor_relay status_page template wheel))
test-fast: setup-dev ## Run the tests that need neither Docker nor a browser, in under 90 seconds
	$(PYTEST) tests/unit tests/contract tests/integration -m 'not docker' $(SLOW) $(PYTEST_ARGS)

# The suite kills 15 times: tests/crash/test_random_kills.py.
ROUNDS ?= 50
crash-test: setup ## Kill a working gateway at ROUNDS=50 random moments and count what was lost: nothing
	@$(BIN)/python scripts/docker_engine.py start
	@$(BIN)/cellblock build
	@PYTHONPATH=tests $(BIN)/python tests/crash/random_kills.py --rounds $(ROUNDS)

# ROWS: some of those in bench/__main__.py, or none to draw the pages anew. QUICK=1: a few minutes, into build/bench.
bench: ## Measure what Cellblock costs beside others, in 25 minutes (QUICK=1: 4), and write docs/performance.md
	@bash scripts/setup.sh dev bench
	@$(BIN)/python scripts/docker_engine.py start
	@$(BIN)/cellblock build
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(ROWS),--rows '$(ROWS)') $(BENCH_ARGS)

client-wheel: setup-dev ## Build the Python client by itself, as a wheel without the server, into dist/
	@bash scripts/client_wheel.sh
	@ls dist/cellblock_client-*.whl

# Committed with its SHA-256, so nobody needs Node unless the pinned versions change.
editor: ## Bundle the playground's editor anew, byte for byte, from scripts/codemirror (needs Node)
	bash scripts/codemirror/build.sh

clean: ## Remove what the others made here
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
