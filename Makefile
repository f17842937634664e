# make train: trains BN-x5 on digits into runs/digits, in two minutes.
# make test: the tests.
# make test-slow: those that take longer: several processes, quick studies, and a
#   miniature ImageNet prepared by TensorFlow Datasets.
# make test-peers: comparisons with PyTorch, TensorFlow and others, the TPU compiler,
#   native convolutions, and the report's page in Chromium.
# make native: faster convolutions on CPUs.
# make benchmarks: an environment with all that benchmarks/ compares with.
# Each installs its requirements first, when they have changed. ARGS are passed on:
#   make test ARGS='tests/data -k order'
PYTHON ?= python3
BIN = .venv/bin
BENCH_BIN = .venv-bench/bin
# Two processes, each with one file of tests at a time: one alone leaves cores idle.
PYTEST = python -m pytest --numprocesses=2 --dist=loadfile

.PHONY: help train test test-slow test-peers native benchmarks chromium format install

train: install
	$(BIN)/python train.py $(ARGS)

help:
	@sed -n '/^# make/,/^[^#]/s/^# //p' Makefile

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/$(PYTEST) $(ARGS)

test-slow: install
	$(call environment,.venv-prepare,requirements-prepare.txt)
	TFDS=.venv-prepare/bin/tfds $(BIN)/$(PYTEST) -m slow $(ARGS)

test-peers: benchmarks chromium
	$(BENCH_BIN)/$(PYTEST) -m peers $(ARGS)

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

native: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-native.txt
	$(BIN)/python -m bn_inception.kernels.native

benchmarks:
	$(call environment,.venv-bench,requirements-bench.txt)
	$(BENCH_BIN)/python -m bn_inception.kernels.native

chromium:
	@command -v chromium > /dev/null || { \
	  apt-get update --quiet && apt-get install --quiet --yes chromium; } || \
	  echo "Chromium is absent and cannot be installed: its tests will be skipped"

install:
	$(call environment,.venv,requirements.txt)

# $(1): the environment; $(2): its requirements. Installs when they have changed.
define environment
	@cat requirements*.txt | cmp -s - $(1)/installed || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }; \
	  ! grep -q '^tensorflow==' $(2) || \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || { \
	    echo "error: TensorFlow has no wheels for Python 3.14: make PYTHON=python3.13"; \
	    exit 2; }; \
	  echo "installing $(2) into $(1) (a minute or two)"; \
	  $(PYTHON) -m venv $(1) && \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2) && \
	  cat requirements*.txt > $(1)/installed; }
endef
