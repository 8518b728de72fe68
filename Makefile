# Everything works from a fresh clone with Python >= 3.11 and make; `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
PAGES := _build/html/index.html

.PHONY: help book test check chapters lab install clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

book: $(READY) | book/_assets/vendor ## build the book; prints where it is
	$(BIN)/jupyter-book build book/
	@test -f $(PAGES) && echo "The book is at $(CURDIR)/$(PAGES)"

test: $(READY) ## unit tests, then every chapter: pytest --nbval book/
	$(BIN)/python -m pytest -n auto --dist loadfile tests
	$(BIN)/python -m pytest --nbval -n auto --dist loadfile book/
	@echo "All tests passed. Pages in a browser: make book, then $(BIN)/pytest -m browser tests"

check: $(READY) ## fast checks: pairs, export, style, layers, links (under 30 s)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "style: run $(BIN)/ruff format ."; exit 1; }
	$(BIN)/python tools/chapters.py --check
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_layers.py tests/test_links.py

chapters: $(READY) ## after an edit of book/NN-name.md: update, export, execute, store (ONLY="02 03")
	$(BIN)/python tools/chapters.py $(ONLY)

lab: $(READY) ## open the chapters live in JupyterLab
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[lab]"
	$(BIN)/jupyter lab book/

install: $(READY) ## only set up .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[book,test]"
	@touch $@

book/_assets/vendor:
	sh tools/assets.sh

clean: ## forget the built pages
	rm -rf _build
