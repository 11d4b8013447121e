# make run   set up, run the study, print its table; JOBS=4 runs four variants at once
# make study NAME=base  set up, keep what it found as studies/base/, to be committed and cited
# make page  set up, make the page over all studies again, studies/index.html
# make test  set up, run all tests
# make review BASE=main  set up, say what this change did beside another commit, and whether it may land
# make lint  set up, check format, style and types
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
JOBS ?= 1
BASE ?= main
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := 1

.PHONY: run study page test review lint

run: .venv/.installed
	python -m pipeline.backends --check
ifneq ($(JOBS),1)
	python -m pipeline.core.jobs $(JOBS)
endif
	dvc repro
	@python -m pipeline.results

study: .venv/.installed
	python -m pipeline.study "$(NAME)"

page: .venv/.installed
	@python -m pipeline.study --index

test: .venv/.installed
	python -m pytest

review: .venv/.installed
	@python -m pipeline.review "$(BASE)"

lint: .venv/.installed
	ruff format --check
	ruff check
	mypy

# DISABLE_CUDA: hqq would otherwise compile CUDA kernels that the study does not use.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	DISABLE_CUDA=1 $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@
