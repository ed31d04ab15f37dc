# Every common task is a target. `make help` lists them.
PYTHON ?= python3
VENV := .venv
# Files of tests that run side by side.
JOBS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export HF_HUB_DISABLE_TELEMETRY := 1
# Waiting torch threads spin by default, which slows two processes on shared cores.
export OMP_WAIT_POLICY := PASSIVE
# Installers do not compile modules. With this variable set, each process would compile torch and transformers: 7 CPU-s.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow faults newest lint types docs screenshots chart chart-run monitor protos playground leaderboard constraints clean chaos soak gpu bench-dpo bench-fleet bench-growth bench-loop bench-sampler bench-scorer families

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(READY)  ## Run the demo: three services, three iterations; about eight minutes on two cores with the set-up
	$(BIN)/sightline demo

# Two test files run at once and share the cores, so each gets one torch thread.
test: export OMP_NUM_THREADS := 1
test: $(READY)  ## Run the tests, without the slow ones and those that need a GPU; JOBS=1 runs one file at a time
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(READY)  ## Run the slow tests: chaos, full matrices, long fuzzing
	$(BIN)/python -m pytest -m slow $(ARGS)

faults: $(READY)  ## Run the tests of faults that users have met; each checks for the right value
	$(BIN)/python -m pytest -m "field and not control" $(ARGS)

newest:  ## Run the tests with the newest version of every package, on Python 3.11 to 3.13 (installed, or fetched by uv)
	tools/newest.sh $(ARGS)

lint: $(READY)  ## Check format, lint, types and protos (lint, and compatibility with the release)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd protos && ../$(BIN)/buf lint
	cd protos && ../$(BIN)/buf breaking --against released/0.1.0.binpb

docs: $(READY)  ## Build the documentation's site into site/
	$(BIN)/mkdocs build --quiet
	@echo "site/index.html"

screenshots: $(READY)  ## Take pictures of runs/demo's report in headless Chromium, for docs/images
	$(BIN)/python tools/screenshots.py runs/demo --out docs/images

chart-run: $(READY)  ## Run a profile of the chart without a cluster, as root: PROFILE=laptop, single-gpu, multi-node-vllm, multi-node-tgi
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/chart_run/run.py $(or $(PROFILE),laptop) $(ARGS)

monitor: $(READY)  ## Run a playground loop under Prometheus; check that panels have series and alerts arrive at a webhook
	$(BIN)/python tools/monitor.py

chart: $(READY)  ## Render, validate and test the Helm chart, its alert rules, dashboards and Dockerfiles
	$(BIN)/hadolint services/*/Dockerfile*
	$(BIN)/python -m pytest -v tests/unit/test_chart_rendering.py tests/unit/test_chart_policy.py $(wildcard tests/unit/test_monitoring*.py tests/unit/test_alerts*.py tests/unit/test_dashboards*.py)

protos: $(READY)  ## Generate the gRPC stubs from the protos
	protos/generate.sh

playground: $(READY)  ## Train the playground's CLIP and LVLM from scratch, and a second LVLM from it
	$(BIN)/python -m sightline_playground make --out playground/weights
	$(BIN)/python -m sightline_playground skill --base playground/weights --out playground/weights
	$(BIN)/python -m sightline_playground check --weights playground/weights

leaderboard: $(READY)  ## Run all recipes on the playground at equal budget, 3 seeds; hours on two cores; finished runs are kept
	$(BIN)/python benchmarks/leaderboard.py $(ARGS)
	$(BIN)/python tools/leaderboard_table.py

chaos: $(READY)  ## Kill -9 trainer, sampler, scorer and Triton 20 times each; the pairs must equal those of an undisturbed run
	$(BIN)/python tools/chaos.py $(ARGS)

soak: $(READY)  ## Load scorer and sampler for 20 minutes, compare each answer, kill Triton and sampler once a minute
	$(BIN)/python tools/soak.py $(ARGS)

bench-dpo: $(READY)  ## Compare the DPO update with TRL's DPOTrainer: CPU seconds, FLOPs, memory; seven CPU minutes
	$(BIN)/python benchmarks/dpo.py $(ARGS)

bench-fleet: $(READY)  ## Compare one, two and four samplers: work per CPU second, publication; about five minutes
	$(BIN)/python benchmarks/fleet.py $(ARGS)

bench-growth: $(READY)  ## Measure cost by size: rows of a dataset, runs of a service, iterations of a report, prompts; ten minutes
	$(BIN)/python benchmarks/growth.py $(ARGS)

bench-loop: $(READY)  ## Compare one online iteration with TRL's online trainers, at two shapes; twenty minutes, ARGS=--quick five
	$(BIN)/python benchmarks/loop.py $(ARGS)

bench-sampler: $(READY)  ## Compare the sampler with model.generate: CPU seconds, ids, memory; about five minutes
	$(BIN)/python benchmarks/sampler.py $(ARGS)

bench-scorer: $(READY)  ## Compare the scorer with the same models in process: CPU seconds, latency, overload, memory; about six minutes
	$(BIN)/python benchmarks/scorer.py $(ARGS)

families: $(READY)  ## Run families of models through the whole loop, half an hour; ARGS=--quick runs six in five minutes
	$(BIN)/python benchmarks/families.py $(ARGS)
	$(BIN)/python tools/family_tables.py

gpu: $(READY)  ## Measure everything that needs a GPU, eleven minutes; `make test ARGS="-m gpu"` runs the tests on one
	tools/gpu.sh $(ARGS)

constraints: $(READY)  ## Write the installed versions into constraints.txt
	(echo "# The exact versions that were tested, for Python 3.11 and 3.12. Made by \`make constraints\`."; \
	 $(BIN)/python -m pip freeze --exclude-editable --exclude uv | sort -f) > constraints.txt

clean:  ## Remove the environment, Triton, runs and caches
	rm -rf $(VENV) .triton runs site .pytest_cache .mypy_cache .ruff_cache

# The environment of all targets: the packages with all extras, and NVIDIA's Triton from its wheel.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Sightline needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	$(BIN)/sightline triton install --home .triton
	@touch $@
