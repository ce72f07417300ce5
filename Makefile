# Every target installs what it needs into .venv; a fresh clone needs Python >= 3.10, git, make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# one core per worker: two workers with two threads each would wait for each other
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test lint docs zoo bench clean

help:
	@echo "make demo   a small trained network is inspected, grown and trained on"
	@echo "make test   the test suite"
	@echo "make lint   ruff, mypy --strict, doctests"
	@echo "make docs   the pages in site/; a broken link fails"
	@echo "make zoo    every model of the zoos (hours), then docs/coverage.md"
	@echo "make bench  timings"

demo: $(VENV)/.installed-demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.installed-test
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not zoo" $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy --strict fxgrow cli
	$(ONE_THREAD) $(BIN)/python -m pytest -q --doctest-modules fxgrow

# the variable silences an advertisement of the theme's makers
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

zoo: $(VENV)/.installed-zoo
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 -m zoo $(ARGS)
	$(BIN)/python benchmarks/zoo.py

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/analysis.py $(ARGS)

clean:
	rm -rf build dist site *.egg-info demo-out zoo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis

# the stamps live inside the environment, so they vanish together with it
EXTRAS-demo := demo
EXTRAS-test := test
EXTRAS-dev  := test,dev
EXTRAS-docs := docs
EXTRAS-zoo  := test,zoo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is too old: fxgrow needs Python 3.10 or newer (make PYTHON=python3.12)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[$(EXTRAS-$*)]'
	@touch $@
