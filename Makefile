PYTHON ?= python3
CONSTRAINTS ?= .ci/constraints.txt
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help setup demo test lint clean
help: ## what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(STAMP) ## the environment alone, in .venv
$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[dev]'
	touch $@

demo: setup ## set-up and the whole route on the embedded sample
	$(BIN)/septet demo --output build/demo

test: setup ## set-up and the tests
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: setup ## ruff, check and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## remove what was built, not the environment
	rm -rf build runs reports .pytest_cache .ruff_cache *.egg-info
