# `make demo` and `make test` need Python 3.11+, git and make, and the package index; everything else is made in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# SynthSeg's training label maps, for `make bench`.
LABELS ?= ../shared/data/labels/head_synthseg_charm
INSTALLED := $(VENV)/.installed

.PHONY: demo test check bench docs clean

demo: $(INSTALLED)
	$(BIN)/medsynth mri2ct examples/mr out/ --device cpu
	$(BIN)/medsynth eval --ref examples/ct --pred out/ --profile synthrad2023 --profile medsynth
	@echo "CT:      out/head_t1_ct.nii.gz out/head_t2_ct.nii.gz"
	@echo "picture: out/head_t1_ct.png out/head_t2_ct.png"
	@echo "record:  out/run.json"

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/quality.py --labels $(LABELS)

docs: $(INSTALLED)
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) out site dist

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
