# make demo    the whole pipeline on Fashion-MNIST: environment, data, tokenizer, tokens, generators, evaluation
# make serve   the shipped sampler over HTTP: API, documentation and the studio page on port 8000
# make test    lint, types and all tests
# make bench   the benchmark suite, 40 minutes on two cores; tables and plots in runs/benchmarks (docs/benchmarks.md)
# Settings over the configuration:  make demo SETTINGS='train.steps=500 output=runs/short'
#                                   make serve SETTINGS='port=8080 model=runs/...'
#                                   make bench SETTINGS='--only sampler,peers --threads 8'
# Chosen tests:                     make test TESTS='tests/generator -k rotary'

CONFIG ?= conf/fashion_mnist.yaml
SETTINGS ?=
TESTS ?=
export PYTHON
# Where bytecode is not kept (container images often say so) each of Ray's processes compiles torch anew: 3 s of a core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo serve test bench setup data browser postgres lint lock
.NOTPARALLEL:

demo: setup
	@settings="$$(.venv/bin/python scripts/data.py)" \
	  && exec .venv/bin/python pipelines/run.py --config $(CONFIG) $$settings $(SETTINGS)

serve: setup
	@exec .venv/bin/python pipelines/serve.py --config conf/serving/fashion_mnist.yaml $(SETTINGS)

test: data browser postgres
	@exec scripts/test.sh $(TESTS)

bench: setup
	@exec .venv/bin/python -m benchmarks --size full $(SETTINGS)

setup:
	@scripts/setup.sh

data: setup
	@.venv/bin/python scripts/data.py

browser: setup
	@.venv/bin/python scripts/browser.py

postgres: setup
	@.venv/bin/python scripts/postgres.py

lint: setup
	@.venv/bin/ruff check . && .venv/bin/mypy

lock:
	@scripts/setup.sh lock
