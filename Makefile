# `make` prints the targets with the comments that stand behind them here.

CONFIG ?= conf/fashion_mnist.yaml
SETTINGS ?=
TESTS ?=
NAME ?=
export PYTHON
# Where bytecode is not kept (container images often say so) each of Ray's processes compiles torch anew: 3 s of a core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo serve bench unit test campaign format lint docs hooks setup data browser postgres lock
.NOTPARALLEL:
.DEFAULT_GOAL := help

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nSettings go over the configuration:\n'
	@printf "  make demo SETTINGS='train.steps=500 output=runs/short'\n"
	@printf "  make serve SETTINGS='port=8080 model=runs/...'\n"
	@printf "  make bench SETTINGS='--only sampler,peers --threads 8'\n"
	@printf "  make unit TESTS='tests/generator -k rotary'\n"
	@printf "  make campaign NAME=faults SETTINGS='--rounds 3'\n"

demo: setup  ## run the whole pipeline on Fashion-MNIST: data, tokenizer, tokens, generators, evaluation
	@settings="$$(.venv/bin/python scripts/data.py)" \
	  && exec .venv/bin/python pipelines/run.py --config $(CONFIG) $$settings $(SETTINGS)

serve: setup  ## serve the shipped sampler on port 8000: HTTP API, its documentation, the studio page
	@exec .venv/bin/python pipelines/serve.py --config conf/serving/fashion_mnist.yaml $(SETTINGS)

bench: setup  ## measure everything, 40 minutes on two cores; tables and plots go to runs/benchmarks
	@exec .venv/bin/python -m benchmarks --size full $(SETTINGS)

unit: setup  ## lint, types and the quick tests that need neither Ray nor installed programs, 2 to 4 minutes
	@exec scripts/test.sh unit $(TESTS)

test: data browser postgres  ## lint, types and all tests, 13 to 25 minutes on two cores; this is what CI runs
	@exec scripts/test.sh all $(TESTS)

campaign: setup  ## run one of the long tests of tests/campaigns: make campaign NAME=nodes (none: list them)
	@exec .venv/bin/python -m tests.campaigns $(NAME) $(SETTINGS)

format: setup  ## format the code and mend what ruff can mend
	@.venv/bin/ruff check --fix . && .venv/bin/ruff format .

lint: setup  ## lint, format, types and docs alone
	@exec scripts/test.sh lint

docs: setup  ## write the pages that follow from the code, and build the site of docs/ into site/
	@.venv/bin/python -m scripts.docs && NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

hooks: setup  ## have git check lint, format and types before each commit
	@.venv/bin/pre-commit install

setup:  ## build .venv, or do nothing where it is up to date
	@scripts/setup.sh

data: setup  ## fetch the data of the demo and of the tests
	@.venv/bin/python scripts/data.py

browser: setup  ## find or install the browser that the tests of the studio page use
	@.venv/bin/python scripts/browser.py

postgres: setup  ## find or install the PostgreSQL that the tests of the MLflow server use
	@.venv/bin/python scripts/postgres.py

lock:  ## resolve pyproject.toml anew and write requirements.lock
	@scripts/setup.sh lock
