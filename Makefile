# Baton: every target sets itself up. Needs Python 3.11 (or later), pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_SECONDS ?= 20
FLOOR_CASES ?= m1-unary-c64
SIDE_BY_SIDE := $(addprefix tests/,cli differential feedback protocol registry unit workers)
FAULTS := $(addprefix tests/,adversity conformance kafka)

.PHONY: setup demo test faults regret histories adversity tools conformance bench floors lint types imports check kafka lock protos clean

setup: $(VENV)/.installed  ## the virtual environment, from the lock file

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## train models, serve them, let a bandit find the better one
	DEMO_SECONDS=$(DEMO_SECONDS) $(BIN)/python -m loadtest demo

test: setup  ## the test suite but for `faults`; what measures time runs alone
	$(BIN)/python -m pytest -q -n 2 --dist loadfile $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -q tests $(addprefix --ignore=,$(SIDE_BY_SIDE) $(FAULTS))

faults: setup  ## processes and brokers killed, disks full, the suites of others: short forms (7 minutes)
	$(BIN)/python -m pytest -q $(FAULTS)

regret: setup  ## the bandit simulations, 200 runs each (3 minutes)
	TRAFFIC_RUNS=200 $(BIN)/python -m pytest -q tests/traffic/test_regret.py --timeout 600

histories: setup  ## 10,000 random histories of labels, against their definition
	JOIN_HISTORIES=10000 SHARD_HISTORIES=10000 $(BIN)/python -m pytest -q tests/feedback/test_join.py tests/feedback/test_shard.py --timeout 3600

adversity: setup  ## the fault tests with many repetitions
	ADVERSITY_REPEAT=20 $(BIN)/python -m pytest -q tests/adversity tests/traffic --timeout 1800

tools: setup  ## what others wrote to test such servers with; needs Go for most
	$(BIN)/python -m tests.conformance.tools

conformance: tools  ## every suite of others, against the own transport
	$(BIN)/python -m tests.conformance

bench: setup  ## req/s per core and latency, beside a hand-written grpc.aio server
	$(BIN)/python -m loadtest compare --short

floors: setup  ## fails where Baton is below the floors of these cases (empty: all short ones)
	$(BIN)/python -m loadtest compare $(FLOOR_CASES) --servers baton,naive --floors

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: setup
	$(BIN)/mypy
	$(BIN)/mypy deploy/kafka/broker.py

imports: setup
	$(BIN)/lint-imports

check: lint types imports test faults  ## everything .ci/run runs

kafka: setup  ## a Kafka broker for a trial, on port 9092 (Java 17 and Maven)
	$(BIN)/python deploy/kafka/broker.py

lock: setup  ## resolve dependencies anew
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --group dev --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --python-version 3.11 --universal --output-file requirements.lock

protos: setup  ## generate Python from protos/
	for name in model_config inference admin records outcomes; do \
	  $(BIN)/python -m grpc_tools.protoc -I gateway/protocol=protos --python_out=. --pyi_out=. gateway/protocol/$$name.proto || exit 1; done
	$(BIN)/python -m grpc_tools.protoc -I workers=protos --python_out=. --pyi_out=. workers/onnx_subset.proto
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. tests/conformance/interop.proto

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
