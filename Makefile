# Every target does what it needs first. `make help` lists them.

PYTHON ?= python3
VENV   ?= .venv
MODEL  ?= .cache/smollm2-135m
RUST   := hooks/rust
NATIVE := $(RUST)/target/release/tracekit-native
BIN    := $(VENV)/bin
CARGO  := cargo --locked

export HF_HUB_OFFLINE = 1
# With it every process that the tests start would compile tracekit anew.
unexport PYTHONDONTWRITEBYTECODE
# Those of `make -j`: cargo would look for a jobserver that only a make below this one is given.
unexport MAKEFLAGS
export TOKENIZERS_PARALLELISM = false
export TRACEKIT_MODEL = $(abspath $(MODEL))
export TRACEKIT_NATIVE = $(abspath $(NATIVE))

.DEFAULT_GOAL := help
.PHONY: help setup model gemma3-model cosyvoice3-model transformers4 demo test lint lint-python lint-rust parity bench faults bench-faults bench-clean bench-programs bench-classes bench-mutants bench-llama-cpp shootout museum traces cosyvoice3-parity cosyvoice3-faults \
        cosyvoice3-guide postmortem bench-repros fuzz kills clean native docs notebook

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.ready native ## .venv with everything for development, and the native engine

$(VENV)/.ready: setup.cfg setup.py pyproject.toml scripts/check_tools.sh
	@sh scripts/check_tools.sh $(PYTHON)
	@echo "setup: creating $(VENV); PyTorch is about 1 GB to download, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,docs]'
	@touch $@

native: ## The native engine, hooks/rust/target/release/tracekit-native
	@sh scripts/check_tools.sh $(PYTHON)
	@test -x $(NATIVE) || echo "setup: building the native engine with candle; about 3 minutes on 2 cores"
	cd $(RUST) && $(CARGO) build --release --bins

model: $(MODEL)/model.safetensors ## The real checkpoint, SmolLM2-135M-Instruct, as a Hugging Face folder

$(MODEL)/model.safetensors: | $(VENV)/.ready
	$(BIN)/python scripts/fetch_model.py $(MODEL)

gemma3-model: .cache/gemma3-270m/model.safetensors ## A second real checkpoint, Gemma 3 270M, as a Hugging Face folder

.cache/gemma3-270m/model.safetensors: | $(VENV)/.ready
	$(BIN)/python scripts/fetch_model.py .cache/gemma3-270m --model gemma3-270m

GGUF := $(foreach name,smollm2-135m gemma3-270m qwen2.5-0.5b,.cache/gguf/$(name).gguf)
$(GGUF): .cache/gguf/%.gguf: | $(VENV)/.ready
	$(BIN)/python scripts/fetch_model.py $@ --model $* --gguf

cosyvoice3-model: $(VENV)/.ready ## A small CosyVoice3 checkpoint, trained on made-up speech, in .cache/cosyvoice3 (a minute at most)
	$(BIN)/python scripts/make_cosyvoice3.py .cache/cosyvoice3

demo: setup model ## Record a real model in PyTorch and in Rust, diff them, then name a planted fault
	@sh scripts/demo.sh $(BIN) $(NATIVE) $(MODEL)

lint: lint-python lint-rust ## ruff, mypy, rustfmt, clippy, rustdoc

lint-python: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint-rust: native
	cd $(RUST) && cargo fmt --all --check
	cd $(RUST) && $(CARGO) clippy --release --workspace --all-targets --all-features -- -D warnings
	cd $(RUST) && RUSTDOCFLAGS="-D warnings" $(CARGO) doc --release --no-deps --all-features

transformers4: .cache/transformers4/made_by.txt ## The transformers that CosyVoice pins, beside the environment's own

.cache/transformers4/made_by.txt: scripts/second_transformers.py | $(VENV)/.ready
	$(BIN)/python scripts/second_transformers.py .cache/transformers4
	@touch $@

test: setup model cosyvoice3-model transformers4 lint ## Everything: lint, types, Rust tests, Python tests
	@sh scripts/check_hdf5_tools.sh
	@sh scripts/check_chromium.sh
	cd $(RUST) && $(CARGO) test --release --workspace --all-features
	# A thread a worker: PyTorch would start one a core in each, and they would wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --durations=60

docs: $(VENV)/.ready ## The documentation site, out/site: guides, API reference, commands; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

notebook: $(VENV)/.ready ## Run docs/notebook.ipynb again and keep what it shows
	$(BIN)/python scripts/run_notebook.py

fuzz: setup ## 20,000 damaged archives, logs, checkpoints, dumps and exported models each against every reading command; SEEDS=first:stop (an hour)
	$(BIN)/python -m tests.attacks.fuzz --format archive --seeds $(or $(SEEDS),0:20000)
	$(BIN)/python -m tests.attacks.fuzz --format log --seeds $(or $(SEEDS),0:20000)
	$(BIN)/python -m tests.attacks.fuzz --format checkpoint --seeds $(or $(SEEDS),0:20000)
	$(BIN)/python -m tests.attacks.fuzz --format dump --seeds $(or $(SEEDS),0:20000)
	$(BIN)/python -m tests.attacks.fuzz --format exported --seeds $(or $(SEEDS),0:20000)

kills: setup ## SIGKILL at random moments of recordings, their close and import, both sides; KILLS=n SEED=n
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.attacks.kills --kills $(or $(KILLS),1000) --seed $(or $(SEED),0) --native $(NATIVE)

bench-programs: setup ## Programs of operations drawn at random are recorded right, and audited clean; SEED=n, RUNS=n
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.random_programs --programs $(or $(RUNS),200) --seed $(or $(SEED),0)

parity: setup model ## Tokens of transformers and of the native engine, 20 seeds x 100 tokens and greedy
	$(BIN)/python scripts/parity.py --model $(MODEL) --native $(NATIVE)

bench: setup model ## Cost of recording, of diff and of the audit, as ratios measured side by side
	$(BIN)/python benchmarks/recording.py --model $(MODEL) --native $(NATIVE)
	$(BIN)/python -m benchmarks.onnx_recording
	$(BIN)/python benchmarks/diff_speed.py
	$(BIN)/python benchmarks/audit_speed.py --model $(MODEL) --native $(NATIVE)

faults: setup model ## Twelve planted faults at three places each, and harmless rewrites (about 5 minutes)
	$(BIN)/python benchmarks/localise.py --model $(MODEL) --native $(NATIVE)

bench-faults: setup model ## Faults drawn at random, on both sides, and harmless rewrites; SEED=n (about 6 minutes)
	$(BIN)/python -m benchmarks.fault_bench --seed $(or $(SEED),0) --model $(MODEL) --native $(NATIVE)

bench-clean: setup model ## Runs without a fault, drawn at random: 0 alarms; RUNS=n SEED=n (300 take an hour or two)
	$(BIN)/python -m benchmarks.clean_runs --runs $(or $(RUNS),300) --seed $(or $(SEED),0) --model $(MODEL) --native $(NATIVE)
	$(BIN)/python -m benchmarks.clean_families --runs $(or $(FAMILY_RUNS),1000) --seed $(or $(SEED),0)

bench-llama-cpp: $(VENV)/.ready $(GGUF) ## Three real GGUF files: runs of llama.cpp without a fault, and planted faults; RUNS=n SEED=n (about 20 minutes)
	$(BIN)/python -m benchmarks.llama_cpp --runs $(or $(RUNS),30) --seed $(or $(SEED),0) $(GGUF)
	$(BIN)/python -m benchmarks.llama_cpp_faults --seed $(or $(SEED),0) $(GGUF)

bench-classes: $(VENV)/.ready ## Every class of transformers that generates, eager against sdpa: 0 alarms; ONLY=REGEX (hours)
	$(BIN)/python -m benchmarks.causal_classes --kind causal --kind seq2seq --kind vision --kind speech --attention eager --attention sdpa --only '$(ONLY)'

bench-mutants: $(VENV)/.ready ## Modelling files changed at random, each mutant audited by the unchanged program; SEED=n (about 10 minutes)
	$(BIN)/python -m benchmarks.mutants --seed $(or $(SEED),0)

shootout: $(VENV)/.ready ## The rules by which others compare runs, on mutants and clean runs: writes docs/shootout.md (about 15 minutes)
	@mkdir -p out && rm -f out/shootout.jsonl
	$(BIN)/python -m benchmarks.shootout --json out/shootout.jsonl --write docs/shootout.md

museum: setup model ## Faults that were reported in public, staged one by one: writes docs/museum.md
	$(BIN)/python -m benchmarks.fault_bench --museum docs/museum.md --model $(MODEL) --native $(NATIVE)

cosyvoice3-parity: setup cosyvoice3-model transformers4 ## CosyVoice3 in PyTorch, with two transformers, and native: 20 seeds x 2 texts
	$(BIN)/python scripts/cosyvoice_parity.py --model .cache/cosyvoice3 --native $(NATIVE)
	PYTHONPATH=.cache/transformers4 $(BIN)/python scripts/cosyvoice_parity.py --model .cache/cosyvoice3 --native $(NATIVE)

cosyvoice3-faults: setup cosyvoice3-model ## Faults of real CosyVoice3 ports, on both texts (about 4 minutes)
	$(BIN)/python benchmarks/cosyvoice_faults.py --model .cache/cosyvoice3 --native $(NATIVE)

cosyvoice3-guide: setup cosyvoice3-model ## Run docs/cosyvoice3.md's commands again and put what they print into it
	$(BIN)/python scripts/run_guide.py docs/cosyvoice3.md --native $(NATIVE)

bench-repros: setup cosyvoice3-model ## The repro of each fault of the native engine: fails with it, passes without it (about 6 minutes)
	$(BIN)/python scripts/make_tiny_model.py llama out/tiny-llama
	$(BIN)/python benchmarks/repros.py --model out/tiny-llama --native $(NATIVE)
	$(BIN)/python benchmarks/repros.py --model .cache/cosyvoice3 --native $(NATIVE) --speech \
	    inverse-cdf stop-early rope-f16 speaker-row no-prompt-prefix other-text fewer-speech-tokens stop-on-eos-only \
	    stop-masked window-from-start repetition-strict quantised-decoder seed

postmortem: setup cosyvoice3-model ## CosyVoice3 over 100 seeds with three faults by seed: groups, cost, report (about 10 minutes)
	$(BIN)/python benchmarks/postmortem_cost.py --model .cache/cosyvoice3 --native $(NATIVE)

traces: setup ## Make the checked-in sample traces again
	$(BIN)/python scripts/make_sample_traces.py --native $(NATIVE)

clean: ## Remove what make built, but not the downloaded model
	rm -rf $(VENV) $(RUST)/target build dist *.egg-info out
