# Two commands do everything on a fresh machine with Python and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test bench soak shapes-checkpoint shapes-model lint format clean

setup: $(VENV)/.ready

demo: $(VENV)/.ready
	$(BIN)/python demo.py --setup_seconds "$$(cat $(VENV)/.ready)"

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Each benchmark compares with a plain way of the same mathematics and writes output/benchmarks/NAME.json: on a CPU sizes that
# take about ten minutes together, with a GPU the full ones. make bench BENCHMARKS='rerank loader'
BENCHMARKS := step grouping rerank vqa_ranking loader
bench: $(VENV)/.ready
	set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/bench_$$name.py; echo; done

# Random kills of all five scripts: make soak KILLS=1000 SEED=7
KILLS ?= 40
SEED ?= 0
soak: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak --kills $(KILLS) --seed $(SEED)

# A longer pre-training than the demo's, for fine-tuning on the synthetic dataset: output/shapes_checkpoint/checkpoint_15.pth
LONGER := --config configs/shapes/Pretrain.yaml --text_encoder output/shapes/vocab --device cpu --resume \
  --set train_epochs=16 --set schedular.epochs=16 --set grit_from_epoch=6 \
  --set 'itm_negatives={0: uniform, 2: sampled, 6: hard}'
shapes-checkpoint: $(VENV)/.ready
	$(BIN)/python -m dataset.shapes --out output/shapes
	$(BIN)/python Pretrain.py $(LONGER) --output_dir output/shapes_checkpoint

# The weights in examples/shapes_model: two more fusion layers, so that heat maps show the third of four, as ALBEF's; the norm of
# the gradient is clipped, which steadies them.
DEEPER := --set bert_config.num_hidden_layers=6 --set clip_grad_norm=1.0
shapes-model: $(VENV)/.ready
	$(BIN)/python -m dataset.shapes --out output/shapes
	$(BIN)/python Pretrain.py $(LONGER) $(DEEPER) --output_dir output/shapes_model
	$(BIN)/python -m models.convert output/shapes_model/checkpoint_15.pth examples/shapes_model

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment, made once, and again when the requirements change.
$(VENV)/.ready: requirements.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "error: Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	@echo 'setting up $(VENV): PyTorch and the other requirements, several GB'
	start=$$(date +%s); \
	{ test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt && \
	echo $$(($$(date +%s) - start)) > $@

clean:
	rm -rf $(VENV) output .pytest_cache .ruff_cache
