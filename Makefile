# `make demo` and `make test` need python3 (3.10 to 3.13), g++, perl and make; everything else is
# installed by pip into .venv on the first call.

PYTHON ?= python3
#: extra words for pip, such as an index of CPU-only torch wheels
PIP_ARGS ?=
PYTEST_ARGS ?= -n 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-from-pyproject

.DEFAULT_GOAL := help
.PHONY: help install demo test clean FORCE

help:
	@echo 'make demo     install into $(VENV) on the first call, then run `nimble demo`'
	@echo 'make test     install into $(VENV) on the first call, then run ruff, mypy and pytest'
	@echo 'make install  only install'
	@echo 'make clean    remove $(VENV) and every file that the tools leave behind'
	@echo
	@echo 'Variables: PYTHON=$(PYTHON)  PYTEST_ARGS="$(PYTEST_ARGS)"  PIP_ARGS="$(PIP_ARGS)"'

# Another PYTHON than the installed one, asked for by name, means a new environment.
INSTALLED_WITH := $(shell cat $(STAMP) 2>/dev/null)
ifneq ($(origin PYTHON),file)
ifneq ($(INSTALLED_WITH),)
ifneq ($(INSTALLED_WITH),$(PYTHON))
VENV_ARGS := --clear
$(STAMP): FORCE
endif
endif
endif

# The check comes first, so that a missing tool is named before anything is downloaded. The stamp is
# written last, so that an interrupted installation is done again.
$(STAMP): pyproject.toml
	@sh .ci/prerequisites '$(PYTHON)'
	$(PYTHON) -m venv $(VENV_ARGS) $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@echo '$(PYTHON)' > $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/nimble demo

test: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find accel golden quant verify flows tests -name __pycache__ -type d -prune -exec rm -rf {} +
