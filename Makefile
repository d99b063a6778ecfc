# make quickstart: a first trained network. make test: the whole test suite. make lint: style, types, sizes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test lint clean

quickstart: .venv/.run
	$(BIN)/python main.py --config configs/quickstart.yml

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup tests

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy main.py parallel_main.py args.py data models trainers utils scripts
	$(BIN)/python .ci/sizes.py

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed, e.g.: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

# The stamps say what is installed: pip runs only when .venv is new or a requirements file has changed.
.venv/.run: requirements.txt | .venv/bin/python
	@echo "installing requirements.txt into .venv: a minute or two, this once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt requirements.txt | .venv/bin/python
	@echo "installing requirements-dev.txt into .venv: a minute or two, this once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch .venv/.run $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
