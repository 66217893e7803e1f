# make demo   from an empty folder to a trained, evaluated, visible model
# make test   the whole test suite           make lab    JupyterLab in the same environment
# make lint   ruff, and notebooks without outputs        make env    only set .venv up
# make test-detectron2  the tests that need detectron2, which is installed into a folder of its own
# make faults the long run of tests/faults: some thousand bad inputs and faults, and one table (FAULTS_ARGS="--seeds 7 3")
# make gpu-check  the tests and the benchmark that need an NVIDIA GPU
# make clean  remove .venv, .detectron2 and caches; data/ and outputs/ stay
#
# The Python that .venv is made from: `make env PYTHON=python3.12`.
# For a driver older than the lock's CUDA: `make env TORCH_INDEX=<address>` installs torch and torchvision from that index
# of wheels, and remembers it; `make env TORCH_INDEX=` goes back to the lock.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= outputs/demo

ifeq ($(origin TORCH_INDEX),undefined)
TORCH_INDEX := $(shell cat $(VENV)/torch-index 2>/dev/null)
endif
# What the lock pins for its own CUDA; the wheels of another index bring theirs.
OF_TORCH := ^(torch|torchvision|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==

# Named after the content of what is installed, so that neither a fresh clone's file times nor `touch` matter.
STAMP := $(VENV)/.installed-$(shell { cat requirements.lock pyproject.toml; printf '%s' '$(TORCH_INDEX)'; } | cksum | cut -d' ' -f1)

# A .venv whose Python is gone, or is not the one asked for on the command line, is made anew.
_ := $(shell test -d $(VENV) && ! $(BIN)/python -c '' 2>/dev/null && rm -f $(VENV)/.installed-*)
ifeq ($(origin PYTHON),command line)
_ := $(shell "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
    && test "$$($(BIN)/python -V 2>&1)" != "$$("$(PYTHON)" -V 2>&1)" && rm -f $(BIN)/python $(VENV)/.installed-*)
endif

# The kernel of a notebook is .venv's, whatever kernels the user has registered elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help env demo test test-detectron2 faults gpu-check lab lint clean

help:
	@sed -n 's/^# \{0,1\}//p; /^$$/q' Makefile

env: $(STAMP)

$(STAMP):
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	    echo "The workbench needs Python 3.10 or newer, and '$(PYTHON)' was not found: install it, or name another with make PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "The workbench needs Python 3.10 or newer, and '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): name a newer one with make PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "'$(PYTHON)' cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 \
	    || { echo "Making $(VENV) with $$("$(PYTHON)" -V)" && "$(PYTHON)" -m venv --clear $(VENV); }
	@echo "Installing requirements.lock (several GB with torch; a minute or more)"
	@test "$$(cat $(VENV)/torch-index 2>/dev/null)" = '$(TORCH_INDEX)' || { \
	    $(BIN)/python -m pip uninstall --quiet --yes torch torchvision && printf '%s' '$(TORCH_INDEX)' > $(VENV)/torch-index; }
	@grep -vE '$(if $(TORCH_INDEX),$(OF_TORCH),^$$)' requirements.lock > $(VENV)/requirements.txt
	@$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --disable-pip-version-check --index-url '$(TORCH_INDEX)' 'torch>=2.11' torchvision,:)
	@uv=$$(grep -E '^uv==' requirements.lock | cut -d' ' -f1); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$uv" \
	    && $(BIN)/python -m uv pip install --quiet --python $(BIN)/python -r $(VENV)/requirements.txt \
	    || { echo "Installing with pip instead" && $(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt; }
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

# Runs one numbered notebook: its name, then its parameters. The executed notebook goes into the run directory.
run_notebook = echo "notebooks/$(1).ipynb" && $(BIN)/papermill --log-output --no-progress-bar \
    notebooks/$(1).ipynb $(DEMO)/$(1).ipynb $(2) 2>&1 | $(QUIET)
# Of papermill's log, only what the cells print.
QUIET := awk '!/^(Executing|Ending) Cell|^<|^(In|Out)put Notebook|^Executing notebook|IPKernelApp|^$$/ { print; fflush() }'
# Of a run's log, the steps; a notebook writes them over one another in its own output.
STEPS := sed -un 's/^.*INFO \(step [0-9]*\/\)/\1/p'

demo: SHELL := bash
demo: .SHELLFLAGS := -o pipefail -c
demo: env
	@$(BIN)/workbench shapes
	@mkdir -p $(DEMO)
	@$(call run_notebook,01_environment,-p output $(DEMO))
	@$(call run_notebook,02_backbone_surgery,-p output $(DEMO))
	@touch $(DEMO)/log.txt; tail -n 0 -f $(DEMO)/log.txt | $(STEPS) & trap 'pkill -P $$$$' EXIT; \
	    $(call run_notebook,03_train,-p config configs/shapes/demo.yaml -p output $(DEMO))
	@$(call run_notebook,04_eval,-p ckpt $(DEMO)/checkpoints/best)
	@$(call run_notebook,05_query_analysis,-p ckpt $(DEMO)/checkpoints/best)
	@$(call run_notebook,06_visualize,-p ckpt $(DEMO)/checkpoints/best)
	@$(BIN)/workbench show $(DEMO)
	@$(BIN)/workbench report $(DEMO)

# One thread a test process: two processes with two threads each would fight for the same cores.
test: env
	@OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

# For tests only. PyPI has detectron2 under another name; its compiled extension is for Python 3.10, and not needed.
DETECTRON2 := .detectron2
DETECTRON2_NEEDS := iopath==0.1.10 omegaconf==2.4.0 hydra-core==1.3.8 antlr4-python3-runtime==4.9.3 cloudpickle==3.1.2 \
    tabulate==0.10.0 termcolor==3.3.0 yacs==0.1.8 portalocker==4.4.2 opencv-python-headless==5.0.0.93

test-detectron2: env
	@test -f $(DETECTRON2)/.installed || { rm -rf $(DETECTRON2) \
	    && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(DETECTRON2) \
	        --python-version 3.10 --only-binary=:all: sal-detectron2==0.7.2 \
	    && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(DETECTRON2) $(DETECTRON2_NEEDS) \
	    && touch $(DETECTRON2)/.installed; }
	@OMP_NUM_THREADS=1 MPLBACKEND=agg PYTHONPATH=$(DETECTRON2) $(BIN)/python -m pytest tests/detectron2 $(PYTEST_ARGS)

faults: env
	@OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m tests.faults $(FAULTS_ARGS)

gpu-check: env
	@$(BIN)/python -c 'import torch; raise SystemExit(None if torch.cuda.is_available() else "gpu-check needs an NVIDIA GPU that torch can use; workbench env says what is missing")'
	@$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)
	@$(BIN)/python benchmarks/deform_attn.py --device cuda

lab: env
	@$(BIN)/jupyter lab --ServerApp.kernel_websocket_connection_class=workbench.notebook.server.PromptConnection

lint: env
	@$(BIN)/ruff check .
	@find notebooks -name '*.ipynb' -not -path '*/.ipynb_checkpoints/*' -exec $(BIN)/nbstripout --verify {} +

clean:
	rm -rf $(VENV) $(DETECTRON2) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
