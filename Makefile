# Two commands for a newcomer: `make demo` and `make test`. Both make their own environment in .venv.
PYTHON ?= $(if $(shell command -v python3.11),python3.11,python3)
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test environment lint format types imports docs site slow mutants fuzz chaos oldest pythons clean

# $(1): extra. The stamp makes a second run start at once; it is stale when the dependencies change.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) must be Python 3.11 or newer; another one: make PYTHON=/path/to/python $(MAKECMDGOALS)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$(1)]"
	@touch $@
endef

$(VENV)/demo.stamp: pyproject.toml constraints.txt
	$(call install,demo)

$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(call install,dev)

environment: $(VENV)/dev.stamp

demo: $(VENV)/demo.stamp
	@$(BIN)/slimbit demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto --dist worksteal

slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

# Which faults do the tests let pass? Not a gate: it takes minutes.
mutants: $(VENV)/dev.stamp
	$(BIN)/python tests/mutants/run.py

SEED ?= 0
CASES ?= 4000
KILLS ?= 200

fuzz: $(VENV)/dev.stamp
	$(BIN)/python tests/fuzz/run.py --seed $(SEED) --cases $(CASES)

chaos: $(VENV)/dev.stamp
	$(BIN)/python tests/chaos/run.py --seed $(SEED) --kills $(KILLS)

# Before a release (CONTRIBUTING.md): the built wheel with the lowest declared versions, and with other Pythons.
RELEASE ?=

oldest: $(VENV)/dev.stamp
	$(BIN)/python tests/release/environments.py --oldest $(RELEASE)

pythons: $(VENV)/dev.stamp
	$(BIN)/python tests/release/environments.py --python 3.11 --python 3.12 --python 3.13 $(RELEASE)

format: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .

imports: $(VENV)/dev.stamp
	$(BIN)/lint-imports

types: $(VENV)/dev.stamp
	$(BIN)/mypy

# Every example of the pages runs, every link leads somewhere, every term is spelt as in the glossary.
docs: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q --no-header -n auto --dist worksteal docs README.md CONTRIBUTING.md --doctest-glob='*.md'
	$(BIN)/codespell --dictionary - --dictionary docsite/terms.txt src docs experiments benchmarks README.md CHANGELOG.md CONTRIBUTING.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(VENV)/site

site: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
