# make quickstart: train a first network. make test: run the test suite; TESTS=tests/unit runs a part, FLAGS adds options
# of pytest. make lint: check style, types, sizes. make docs: build the pages as a site in site/.
PYTHON ?= python3
TESTS ?= tests
FLAGS ?=
BIN := .venv/bin

.PHONY: quickstart test lint docs clean

quickstart: .venv/.run
	$(BIN)/python main.py --config configs/quickstart.yml

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(FLAGS) $(TESTS)

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy main.py parallel_main.py featherweight.py args.py data models trainers utils scripts examples .ci/house.py
	$(BIN)/python .ci/sizes.py

docs: .venv-docs/.done
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "written: site/index.html; for its search: python3 -m http.server --directory site"

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, e.g.: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# The stamps .run and .dev record what is installed. pip runs when .venv is new or a requirements file has changed.
.venv/.run: requirements.txt | .venv/bin/python
	@echo "installing requirements.txt into .venv: a minute or two, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt requirements.txt | .venv/bin/python
	@echo "installing requirements-dev.txt into .venv: a minute or two, once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch .venv/.run $@

# The tools of the pages have an environment of their own: a run needs none of them.
.venv-docs/.done: requirements-docs.txt
	@echo "installing requirements-docs.txt into .venv-docs: a minute, once"
	$(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	@touch $@

clean:
	rm -rf .venv .venv-docs site .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
