# `make demo` runs the whole journey on the shipped sample, `make test` runs every check, `make test-fast` the quick ones.
# Each of them installs the locked dependencies into .venv the first time and reuses them afterwards.
# `make install` installs what runs need on a CPU, `make install EXTRA=cuda` on NVIDIA GPUs, `make install EXTRA=tpu` on
# TPUs, `make install EXTRA=test` what tests need. All locks hold the same versions, so that they add up in one .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2
export TF_ENABLE_ONEDNN_OPTS ?= 1

EXTRA ?=
ifneq (,$(filter-out cuda tpu test,$(EXTRA)))
$(error EXTRA=$(EXTRA): expected cuda, tpu, test, or nothing for a CPU)
endif

.PHONY: install demo test test-fast check format lock clean

install: $(VENV)/.installed$(if $(filter test,$(EXTRA)),,-$(or $(EXTRA),runtime))

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# A process a core, each with whole files: the tests of a file share what its fixtures made. A process takes up to 3 GiB.
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: check
	$(BIN)/python -m pytest $(PARALLEL)

# What to run while working: all but the tests that are marked as slow.
test-fast: check
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

# What pre-commit runs too: lint, format, types.
check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The lock names torch by version and the hash of its CPU build; where the configured index has only the CUDA build,
# the second attempt asks PyTorch's own index for it.
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
define INSTALL
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.version.split()[0]} was found; name one with make PYTHON=/path/to/python3.11")'
$(PYTHON) -m venv $(VENV)
$(BIN)/pip install --quiet --no-deps --require-hashes --requirement $< || \
  $(BIN)/pip install --quiet --no-deps --require-hashes --requirement $< --extra-index-url $(TORCH_CPU_INDEX)
@touch $@
endef

$(VENV)/.installed: requirements.lock
	$(INSTALL)

$(VENV)/.installed-%: requirements-%.lock
	$(INSTALL)

# Resolve the dependencies anew (needs uv); the locks carry versions and hashes, no addresses. That of the tests comes
# first and binds the others.
COMPILE := uv pip compile pyproject.toml --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-emit-find-links --no-header
lock:
	$(COMPILE) --extra test --extra-index-url $(TORCH_CPU_INDEX) --index-strategy unsafe-best-match -o requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.lock
	$(COMPILE) --no-annotate -c requirements.lock --extra jax -o requirements-runtime.lock
	$(COMPILE) --no-annotate -c requirements.lock --extra cuda -o requirements-cuda.lock
	$(COMPILE) --no-annotate -c requirements.lock --extra tpu -o requirements-tpu.lock

clean:
	rm -rf demo_output .pytest_cache .ruff_cache .hypothesis
