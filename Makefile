# make train: trains BN-x5 on digits into runs/digits.  make test: the tests.
# make test-slow: the longest of them.
# make test-peers: batch norm, networks and evaluation crops against PyTorch and
#   TensorFlow, in an environment of its own.
# make test-distributed: several processes, and the same numbers in every layout.
# make test-pod: the dry run with the TPU compiler; no TPU is needed.
# make test-browser: the page of the report in Chromium, Debian's, which it installs
#   where it may.
# make test-study: the quick version of every study, and the report of them.
# make native: faster convolutions on CPUs.  make test-native: tests of them.
# make benchmarks: an environment with all that benchmarks/ compares with.
# make test-prepare: a miniature ImageNet through TFDS, which needs TensorFlow.
# Each installs its requirements first, when they have changed.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: train test test-slow test-peers test-pod test-prepare test-distributed test-browser test-study test-native native benchmarks format install

train: install
	$(BIN)/python train.py $(ARGS)

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest $(ARGS)

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test-slow: install
	$(BIN)/python -m pytest -m 'slow and not prepare' $(ARGS)

test-peers:
	$(call environment,.venv-peers,requirements-bench.txt)
	.venv-peers/bin/python -m pytest -m peers $(ARGS)

test-pod:
	$(call environment,.venv-pod,requirements-pod.txt)
	.venv-pod/bin/python -m pytest -m pod $(ARGS)

test-prepare: install
	$(call environment,.venv-prepare,requirements-prepare.txt)
	TFDS=.venv-prepare/bin/tfds $(BIN)/python -m pytest -m prepare $(ARGS)

test-distributed: install
	$(BIN)/python -m pytest -m distributed $(ARGS)

test-study: install
	$(BIN)/python -m pytest -m study $(ARGS)

test-browser:
	$(call environment,.venv-browser,requirements-browser.txt)
	@command -v chromium > /dev/null || { \
	  apt-get update --quiet && apt-get install --quiet --yes chromium; } || \
	  echo "Chromium is absent and cannot be installed: its tests will be skipped"
	.venv-browser/bin/python -m pytest -m browser $(ARGS)

native: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-native.txt
	$(BIN)/python -m bn_inception.kernels.native

benchmarks:
	$(call environment,.venv-peers,requirements-bench.txt)
	.venv-peers/bin/python -m bn_inception.kernels.native

test-native: benchmarks
	.venv-peers/bin/python -m pytest -m native $(ARGS)

install:
	$(call environment,.venv,requirements.txt)

# $(1): the environment; $(2): its requirements. Installs when they have changed.
define environment
	@cat requirements.txt $(2) | cmp -s - $(1)/installed || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }; \
	  ! grep -q '^tensorflow==' $(2) || \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))' || { \
	    echo "error: TensorFlow has no wheels for Python 3.14: make PYTHON=python3.13"; \
	    exit 2; }; \
	  echo "installing $(2) into $(1) (a minute or two)"; \
	  $(PYTHON) -m venv $(1) && \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check -r $(2) && \
	  cat requirements.txt $(2) > $(1)/installed; }
endef
