# make repro: set up, then run the pipeline.   make test: set up, then check everything.
# make bench: set up, then measure speed.   make test-gpu: set up, then check and measure on a GPU.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test test-gpu bench clean

repro: $(VENV)/installed
	dvc repro
	@echo "Sampled images: data/sample/grid.png"

test: $(VENV)/installed-test
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-gpu: $(VENV)/installed-test
	python -m benchmarks.gpu

bench: $(VENV)/installed
	python -m benchmarks.bench

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[pipeline]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .checkpoints dvc_plots watch
