# Every target makes `.venv` when it is missing. `make PYTHON=python3.12 test` chooses the interpreter.

PYTHON ?= python3
BIN    := .venv/bin
READY  := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    classify the sample images with an embedded model"
	@echo "make test    run the tests"
	@echo "make lint    check style, types and import directions"
	@echo "make format  put the code into that style"
	@echo "make bench   measure the speed of classification and of features"
	@echo "make clean   remove .venv and the caches"

demo: $(READY)
	@$(BIN)/diffsight classify --samples

# A process for each core, with a thread each: they would wait for one another otherwise.
test: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

lint: $(READY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

format: $(READY)
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

bench: $(READY)
	@$(BIN)/python benchmarks/zero_shot.py
	@$(BIN)/python benchmarks/feature_speed.py

clean:
	@rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# Plain pip, so that the machine gets the torch that PyPI has for it, with or without CUDA.
$(READY): pyproject.toml
	@echo "Installing diffsight and its tools into .venv: a few minutes and about 6 GB the first time ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
	@echo "... done."
