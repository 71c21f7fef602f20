# Everything runs in .venv, made from constraints.txt on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM := .venv-vllm
DEMO := runs/demo

.PHONY: setup demo test test-slow test-cluster test-cluster-long test-deploy test-gpu test-vllm test-lmms-eval lmms-eval lint bench bench-serve bench-scale bench-data ablations results clean

setup: $(READY)

# torch first and by its exact release: DeepSpeed's build looks for it.
$(READY): pyproject.toml constraints.txt tests/support/s3-server.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/s3-server \
		--requirement tests/support/s3-server.txt
	touch $@

# Nobody loses a trained policy by running a command again: the last run in the way moves to FOLDER.old.
define set_aside
	@if [ -e $(1) ]; then rm -rf $(1).old && mv $(1) $(1).old && echo "the earlier $(1) is now $(1).old"; fi
endef

demo: setup
	$(call set_aside,$(DEMO))
	$(BIN)/cacovid demo --out $(DEMO)

test: setup
	$(BIN)/pytest -q

test-slow: setup
	$(BIN)/pytest -q -m "slow and not cluster"

test-cluster: setup
	$(BIN)/pytest -q -m "cluster and not slow and not deploy" tests --reliability-table docs/reliability.md

test-deploy: setup
	$(BIN)/pytest -q -m deploy tests

test-cluster-long: setup
	$(BIN)/pytest -q -m "cluster and slow" tests --reliability-table docs/reliability.md

test-gpu: setup
	$(BIN)/pytest -q -m gpu

# Not in .venv: vLLM asks for older releases than we pin. Its list is whole, so that pip resolves nothing. What an earlier
# set-up left in this folder would be found before the installed package, and hide the plugin if it is older than it.
$(VLLM)/.ready: pyproject.toml tests/support/vllm.txt tests/support/torchvision_hook.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --constraint tests/support/vllm.txt torch setuptools
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement tests/support/vllm.txt
	rm -rf *.egg-info
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	site=$$($(VLLM)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") \
		&& cp tests/support/torchvision_hook.py $$site/ && echo "import torchvision_hook" > $$site/torchvision_hook.pth
	touch $@

test-vllm: $(VLLM)/.ready
	OMP_NUM_THREADS=1 $(VLLM)/bin/pytest -q -m vllm -n 2 --dist loadfile tests/vllm

# Not in .venv: it asks for older releases than we pin.
lmms-eval: setup
	$(BIN)/python -m tests.support.lmms_eval

test-lmms-eval: setup
	$(BIN)/pytest -q -m lmms_eval

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m benchmarks.ray_cost
	$(BIN)/python -m benchmarks.compression_time

bench-serve: setup
	$(BIN)/python -m benchmarks.service
	$(BIN)/python -m benchmarks.engine_batches
	$(BIN)/python -m benchmarks.engines

bench-scale: setup
	$(BIN)/python -m benchmarks.scale --actors 64 --real
	$(BIN)/python -m benchmarks.scale --actors 1000
	$(BIN)/python -m benchmarks.scale --actors 1000 --items-per-actor 2 --parts 4
	$(BIN)/python -m benchmarks.data_path

bench-data: setup
	$(BIN)/python -m benchmarks.decoding
	$(BIN)/python -m benchmarks.table_memory

# What each choice of the default is worth; the same command goes on where it was ended.
ablations: setup
	$(BIN)/python -m benchmarks.ablations --out runs/ablations

RESULTS := runs/results
SEEDS := 0 1 2
POLICIES := late-evidence=embedded=1 paper-clipped=paper=20 world-2=embedded-2=10 # name, configuration, steps between evaluations
# Smaller ones try the whole command, as TRAIN='--set run.steps=2 --set data.train_clips=40' REFIT=2 CLIPS=4 SCENES=1 TRAVEL=2 SEEDS=0.
TRAIN :=
REFIT := 400
CLIPS := 250
SCENES := 50
TRAVEL := 20

# The steps of configs/paper.toml were chosen with the first 250 held-out clips in sight: these are others.
OTHER_CLIPS := $(RESULTS)/other-clips
PAPER := --data $(OTHER_CLIPS)/questions.parquet --retention 0.1,0.05,0.02 --methods policy,divprune,text-cosine,vidcom2,uniform,random
WORLD_2_CLIPS := $(RESULTS)/world-2-scenes
WORLD_2 := --data $(WORLD_2_CLIPS)/questions.parquet --retention 0.1,0.05,0.02 --methods policy,untrained,divprune,text-cosine,vidcom2,uniform,random,oracle
policies_of = $(foreach seed,$(SEEDS),--policy $(1)-$(seed)=$(RESULTS)/$(1)-$(seed))
RATIOS := 0.25,0.2,0.15,0.1,0.05,0.02,0.01

# The tables of docs/benchmarks.md: every policy trained three times through actors and learner, all methods on held-out
# clips, with the control of swapped questions. Hours; the same command goes on where it was ended.
results: setup
	set -e; for policy in $(POLICIES); do for seed in $(SEEDS); do \
		name=$${policy%%=*}; every=$${policy##*=}; config=$${policy#*=}; config=$${config%=*}; \
		$(BIN)/cacovid train --config configs/$$config.toml --set run.seed=$$seed --set evaluation.every=$$every $(TRAIN) --out $(RESULTS)/$$name-$$seed; \
	done; done
	set -e; for seed in $(SEEDS); do \
		test -e $(RESULTS)/world-2-$$seed/refit || $(BIN)/cacovid refit --updates $(REFIT) $(RESULTS)/world-2-$$seed; \
	done
	$(BIN)/cacovid evaluate --out $(RESULTS)/table --clips $(CLIPS) --retention $(RATIOS) --controls swapped \
		$(call policies_of,late-evidence) $(call policies_of,paper-clipped)
	test -e $(OTHER_CLIPS) || $(BIN)/cacovid embedded clips --split held-out --first 250 --count $(CLIPS) --out $(OTHER_CLIPS)
	set -e; for rule in global frame-budgets; do \
		$(BIN)/cacovid evaluate --out $(RESULTS)/table-paper-$$rule $(PAPER) $(call policies_of,paper-clipped) --rule $$rule; \
	done
	test -e $(WORLD_2_CLIPS) || $(BIN)/cacovid embedded clips --world 2 --split held-out --first 50 --count $(SCENES) --out $(WORLD_2_CLIPS)
	$(BIN)/cacovid evaluate --out $(RESULTS)/table-world-2 $(WORLD_2) $(call policies_of,world-2) \
		$(foreach seed,$(SEEDS),--policy world-2-$(seed)-refit=$(RESULTS)/world-2-$(seed)/refit)
	$(BIN)/python -m benchmarks.travel $(RESULTS)/late-evidence-0 --split held-out --clips $(TRAVEL) --frames 8,16,32,64
	$(BIN)/cacovid report $(foreach policy,$(POLICIES),$(foreach seed,$(SEEDS),$(RESULTS)/$(firstword $(subst =, ,$(policy)))-$(seed))) \
		$(foreach table,table table-paper-global table-paper-frame-budgets table-world-2,$(RESULTS)/$(table)) \
		--out $(RESULTS)/report.html --overwrite

clean:
	rm -rf $(VENV) $(VLLM) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
