# make train: trains BN-x5 on digits into runs/digits.  make test: all tests.
# Both make .venv and install requirements.txt first, when it has changed.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: train test format install

train: install
	$(BIN)/python train.py $(ARGS)

test: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/python -m pytest $(ARGS)

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install:
	@cmp -s requirements.txt .venv/requirements.txt || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "error: Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }; \
	  echo "installing requirements.txt into .venv (about a minute)"; \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	  cp requirements.txt .venv/requirements.txt; }
