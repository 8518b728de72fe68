# Everything works from a fresh clone with Python >= 3.11 and make: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
LAB := $(VENV)/.lab
VENDOR := book/_assets/vendor
PAGES := _build/html/index.html
# -qq: errors only. PIP_EXTRA_INDEX_URL, as README.md says, keeps pip from a torch of several GB.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input --constraint constraints.txt
# One process a core, one thread a process: more threads than cores only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8

.PHONY: help book test check chapters bench results-gpu results-gpu-dry lab install clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

book: $(READY) $(VENDOR) ## build the book; prints where it is
	$(BIN)/jupyter-book build book/
	@test -f $(PAGES) || { echo "jupyter-book left no $(PAGES)"; exit 1; }
	@echo "The book is at $(CURDIR)/$(PAGES)"

test: $(READY) ## unit tests, then every chapter: pytest --nbval book/
	$(PYTEST) --dist worksteal tests
	$(PYTEST) --dist loadfile --nbval book/
	@echo "All tests passed; those skipped say above what they need."

check: $(READY) ## fast checks, each with what mends it: style, pairs, export, layers, links
	@status=0; \
	$(BIN)/ruff check --quiet . || { status=1; echo "style: mend by hand, or with $(BIN)/ruff check --fix .; a chapter in book/NN-name.md, then make chapters ONLY=NN"; }; \
	$(BIN)/ruff format --check --quiet . >/dev/null || { status=1; $(BIN)/ruff format --check . | grep -- '-->' ; echo "style: mend with $(BIN)/ruff format ."; }; \
	$(BIN)/python tools/chapters.py --check || status=1; \
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layers.py tests/test_links.py tests/test_project.py || status=1; \
	exit $$status

chapters: $(READY) ## after an edit of book/NN-name.md: update, export, execute, store (ONLY="02 03")
	@status=0; \
	$(BIN)/python tools/chapters.py $(ONLY) || status=1; \
	$(BIN)/python tools/readme_figure.py || status=1; \
	exit $$status

bench: $(READY) ## measure speed and memory into results/, in hours (ONLY=must-show: minutes)
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

results-gpu: $(READY) ## train the paper's networks on a GPU, in hours (MINUTES=8.5: a piece; Error 3 means unfinished; ONLY=plus: of these)
	$(BIN)/python -m benchmarks.training full $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only $(ONLY))

results-gpu-dry: $(READY) ## the same for a few steps on the CPU
	rm -rf runs/dry
	$(BIN)/python -m benchmarks.training full --dry --device cpu

# not `jupyter lab book/`: jupytext.toml must not lie above the server's root,
# or only the notebook is saved, and its text would then replace it
lab: $(LAB) ## open the chapters live in JupyterLab
	$(BIN)/python -m jupyter lab --LabApp.default_url=/lab/tree/book

install: $(READY) ## only set up .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	@echo "installing into $(VENV), about a minute"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --editable ".[book,test]"
	@touch $@

$(LAB): $(READY)
	@echo "installing JupyterLab into $(VENV)"
	@$(PIP) --editable ".[lab]"
	@touch $@

# The scripts of the pages; where npm cannot have them, pages use the public addresses.
$(VENDOR): tools/assets.sh
	sh tools/assets.sh

clean: ## forget the built pages
	rm -rf _build
