# make demo | make test | make check: each builds what it needs, nothing else is required but python 3.11 and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check quality clean

# torch first and pinned: the plain name would pull gigabytes of CUDA packages onto a CPU machine.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("foveate needs Python 3.11 or newer; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[nouns,plot,dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/foveate ask examples/scene.png "What letter is on the yellow star?" --compare --draw demo.png

test: $(VENV)/.ready
	$(BIN)/pytest

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py

# docs/quality.md and its plots; what a stopped run has done is kept in build/quality.
quality: $(VENV)/.ready
	$(BIN)/foveate bench quality --suite all --out build/quality --docs docs

clean:
	rm -rf $(VENV) build dist src/*.egg-info
