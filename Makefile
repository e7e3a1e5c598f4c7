# make repro   everything, from a fresh clone to reports/report.html
# make test    lint, types and tests, from nothing
# make figure  docs/study.svg, the picture in README.md, from docs/study.json
# make test-gpu, make test-slow, make test-browser    what `make test` leaves out: tests that need a GPU, minutes, a Chromium
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || echo python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
export PATH := $(BIN):$(PATH)
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: repro test figure test-gpu test-slow test-browser lint clean

repro: $(VENV)/.installed
	dvc repro
	@echo "The report: file://$(CURDIR)/reports/report.html"

test: $(VENV)/.installed lint
	pytest --numprocesses 2 --dist worksteal

figure: $(VENV)/.installed
	python benchmarks/study_figure.py

test-gpu: $(VENV)/.installed
	pytest -m gpu

test-slow: $(VENV)/.installed
	pytest --numprocesses 2 --dist worksteal -m slow

# The report's pages as people see them. Debian and Ubuntu: apt-get install chromium; CHROMIUM names another program.
test-browser: $(VENV)/.installed
	pytest -m browser

lint: $(VENV)/.installed
	ruff check .
	ruff format --check .
	mypy

# requirements.txt pins everything. sae-bench goes in without its dependencies: it names torchvision, which it never
# imports and which breaks next to a CPU build of torch; the rest of what it needs is in requirements.txt.
$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "error: expected Python 3.11 or 3.12, got %d.%d. Run: make PYTHON=/path/to/python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-compile --no-deps sae-bench==0.6.0
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
