# `make` lists what there is. PYTHON: the interpreter that the environment is made with (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help env demo test slow lint format picture clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(READY) ## Make the environment: .venv with the extras dev and hf

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "superscaler needs Python 3.11 to 3.13: make PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,hf]' -c constraints.txt
	@touch $@

demo: $(READY) ## Train a GPT on 4 Ray workers beside plain torch (3 minutes after installation)
	$(BIN)/python examples/train_gpt.py

test: $(READY) ## Run the tests (JOBS=2 at a time)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

slow: $(READY) ## Run the tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## Style, types and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

picture: $(READY) ## Draw the timeline of the README again
	$(BIN)/python docs/draw_timeline.py

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .hypothesis .ruff_cache .import_linter_cache
