# Every target sets itself up from python3, make and the default package index, and starts at once when that is done.
PYTHON ?= python3
IMAGES ?= cifar10/train-00000.tar
PHOTOGRAPHS ?= photos
# the tests start hundreds of processes, each of which would compile the sources again
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check faults docs bench clean

demo: $(VENV)/.core
	$(BIN)/selfcluster demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not faults" --doctest-modules --ignore tests/compile_kernels.py \
		src/selfcluster tests

faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults.rows -n 2 --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/codespell
	$(BIN)/python tools/lint_text.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir build/site
	$(BIN)/python -m pytest -p no:cacheprovider tests/test_layers.py

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000

bench: $(VENV)/.bench
	@test -e "$(IMAGES)" || { echo "make bench: there is no $(IMAGES); IMAGES=FILE names a tar of 32 px JPEGs"; exit 2; }
	@test -e "$(PHOTOGRAPHS)" || { echo "make bench: there is no $(PHOTOGRAPHS); PHOTOGRAPHS=FOLDER names photographs"; exit 2; }
	$(BIN)/python benchmarks/clustering.py kmeans-faiss sinkhorn knn --repeats 1
	$(BIN)/python benchmarks/train_vs_lightly.py --images $(IMAGES) --rounds 2 --steps 2
	$(BIN)/python benchmarks/loader.py $(PHOTOGRAPHS) --rounds 3
	$(BIN)/python benchmarks/views.py --rounds 3

.venv: $(VENV)/.dev

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable ".[dev]"
	touch $@

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) build dist
