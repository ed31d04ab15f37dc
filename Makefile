# Every habit is a target. `make help` lists them.
PYTHON ?= python3
VENV := .venv
# Files of tests that run side by side.
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY := 1
# Torch threads that spin while they wait crawl when two processes share the cores.
export OMP_WAIT_POLICY := PASSIVE
# Installers leave modules uncompiled, and with this set each process would compile torch and transformers anew: 7 CPU-s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow faults newest lint types docs screenshots chart chart-run monitor protos playground leaderboard constraints clean chaos soak gpu bench-dpo bench-fleet bench-growth bench-loop bench-sampler bench-scorer families

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(READY)  ## Watch the loop close: three services, three iterations, about five minutes on two cores
	$(BIN)/sightline demo

# Two files at a time share the cores: one thread of torch each.
test: export OMP_NUM_THREADS := 1
test: $(READY)  ## The test suite, but for what is slow or needs a GPU; JOBS=1 runs one file at a time
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(READY)  ## The slow tests: chaos, full matrices, fuzzing at length
	$(BIN)/python -m pytest -m slow $(ARGS)

faults: $(READY)  ## The faults that people met in the field, each a test of the right value
	$(BIN)/python -m pytest -m "field and not control" $(ARGS)

newest:  ## The tests with the newest versions of all packages, on each Python from 3.11 to 3.13 that is here or uv can get
	tools/newest.sh $(ARGS)

lint: $(READY)  ## Format check, linter, types, protos: lint and no break of what was released
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf breaking --against released/0.1.0.binpb

docs: $(READY)  ## Build the documentation's site into site/
	$(BIN)/mkdocs build --quiet
	@echo "site/index.html"

screenshots: $(READY)  ## Pictures of runs/demo's report in headless Chromium, for docs/images
	$(BIN)/python tools/screenshots.py runs/demo --out docs/images

chart-run: $(READY)  ## Run a profile of the chart without a cluster, as root: PROFILE=laptop, single-gpu, multi-node-vllm, multi-node-tgi
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/chart_run/run.py $(or $(PROFILE),laptop) $(ARGS)

monitor: $(READY)  ## A playground loop under Prometheus: every panel has a series, and alerts arrive at a webhook
	$(BIN)/python tools/monitor.py

chart: $(READY)  ## Render, validate and test the Helm chart, its rules, dashboards and images' Dockerfiles
	$(BIN)/hadolint services/*/Dockerfile*
	$(BIN)/python -m pytest -v tests/unit/test_chart_rendering.py tests/unit/test_chart_policy.py $(wildcard tests/unit/test_monitoring*.py tests/unit/test_alerts*.py tests/unit/test_dashboards*.py)

protos: $(READY)  ## Make the gRPC stubs again
	protos/generate.sh

playground: $(READY)  ## Train the playground's CLIP and LVLM again, from nothing
	$(BIN)/python -m sightline_playground make --out playground/weights
	$(BIN)/python -m sightline_playground check --weights playground/weights

leaderboard: $(READY)  ## All recipes on the playground at equal budget, 3 seeds; hours on two cores, finished runs are kept
	$(BIN)/python benchmarks/leaderboard.py $(ARGS)

chaos: $(READY)  ## kill -9 of trainer, sampler, scorer, Triton, 20 times each: the pairs must be those of a run left alone
	$(BIN)/python tools/chaos.py $(ARGS)

soak: $(READY)  ## Scorer and sampler at saturation for 20 minutes, each answer compared, Triton and sampler killed once a minute
	$(BIN)/python tools/soak.py $(ARGS)

bench-dpo: $(READY)  ## The DPO update against TRL's DPOTrainer: CPU seconds, FLOPs, memory; seven CPU minutes
	$(BIN)/python benchmarks/dpo.py $(ARGS)

bench-fleet: $(READY)  ## One, two and four samplers: work per CPU-second, publication; about five minutes
	$(BIN)/python benchmarks/fleet.py $(ARGS)

bench-growth: $(READY)  ## Cost against size: rows of a dataset, runs of a service, iterations of a report, prompts; ten minutes
	$(BIN)/python benchmarks/growth.py $(ARGS)

bench-loop: $(READY)  ## One online iteration against TRL's online trainers, at two shapes: CPU seconds; twenty minutes, ARGS=--quick five
	$(BIN)/python benchmarks/loop.py $(ARGS)

bench-sampler: $(READY)  ## The sampler against model.generate: CPU seconds, ids, memory; about five minutes
	$(BIN)/python benchmarks/sampler.py $(ARGS)

bench-scorer: $(READY)  ## The scorer against the same models in process: CPU seconds, latency, overload, memory; about six minutes
	$(BIN)/python benchmarks/scorer.py $(ARGS)

families: $(READY)  ## Families of models through the whole loop, half an hour; ARGS=--quick takes six in five minutes
	$(BIN)/python benchmarks/families.py $(ARGS)
	$(BIN)/python tools/family_tables.py

gpu: $(READY)  ## Everything that only a GPU can tell, eight minutes; `make test ARGS="-m gpu"` tests on one
	tools/gpu.sh $(ARGS)

constraints: $(READY)  ## Write the versions that are installed into constraints.txt
	(echo "# The exact versions that were tested, for Python 3.11 and 3.12. Made by \`make constraints\`."; \
	 $(BIN)/python -m pip freeze --exclude-editable --exclude uv | sort -f) > constraints.txt

clean:  ## Remove what was installed and run here
	rm -rf $(VENV) .triton runs site .pytest_cache .mypy_cache .ruff_cache

# Everything that the targets need: the packages with all extras, and NVIDIA's Triton from its wheel.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	$(BIN)/sightline triton install --home .triton
	@touch $@
