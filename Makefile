# make setup  puts everything into .venv          make serve  sets up what is missing and serves on 127.0.0.1:8000
# make check  formats, lints, types, layers       make test   runs every test; as root on Debian it brings
#                                                           Docker and Chromium along
# make crash-test ROUNDS=500  kills a working gateway at random moments and counts what was lost: nothing
# make clean  removes what the others made here
.DELETE_ON_ERROR:
.PHONY: setup serve check test crash-test clean

BIN := .venv/bin
# Tests wait for containers more than they compute.
WORKERS ?= auto

setup:
	@bash scripts/setup.sh

serve: setup
	@exec $(BIN)/cellblock serve

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Status 3: no engine or browser, and none to be had. The tests then say what they skip, or fail where CI is set.
test: setup
	@bash scripts/browser.sh || [ $$? -eq 3 ]
	@$(BIN)/python scripts/docker_engine.py start || [ $$? -eq 3 ]
	@if $(BIN)/python scripts/docker_engine.py answers; then $(BIN)/cellblock build; fi
	$(BIN)/pytest -n $(WORKERS) --dist loadgroup $(PYTEST_ARGS)

ROUNDS ?= 200
crash-test: setup
	@$(BIN)/python scripts/docker_engine.py start
	@$(BIN)/cellblock build
	@cd tests/crash && ../../$(BIN)/python random_kills.py --rounds $(ROUNDS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
