# make demo: set up and run the main job on built-in data.  make test: set up and pass the tests.
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-long test-triton sanitize lint docs setup setup-dev clean

demo: setup
	$(PY) -m winnow demo --out demo-out

test: setup-dev
	$(PY) -m pytest -n 2 --dist loadfile -q

# What takes minutes and no ordinary run repeats: kills at forty points, stages damaged in every way.
test-long: setup-dev
	$(PY) -m pytest -n 2 --dist loadfile -q -m long

# Every native kernel under AddressSanitizer and UBSan; needs CMake and a compiler, no Python.
sanitize:
	cmake -S . -B build/sanitize -DWINNOW_SANITIZE=ON
	cmake --build build/sanitize
	build/sanitize/sanitize 2000

lint: setup-dev
	$(PY) -m ruff check src tests benchmarks docs
	$(PY) -m ruff format --check src tests benchmarks docs
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-logo

# The documentation site, in site/: the notebooks run, and a broken link or example stops it.
docs: $(VENV)/.docs
	PATH="$(abspath $(VENV))/bin:$$PATH" NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict --site-dir site

# The Triton kernels in Triton's interpreter, in an environment of their own.
test-triton:
	test -x .venv-triton/bin/python || python3 -m venv .venv-triton
	.venv-triton/bin/pip install -q -c $(CONSTRAINTS) torch
	.venv-triton/bin/pip install -q -c $(CONSTRAINTS) -e '.[gpu,dev]'
	TRITON_INTERPRET=1 .venv-triton/bin/python -m pytest -q tests/kernels/test_gpu.py

setup: $(VENV)/.core
setup-dev: $(VENV)/.dev

# torch first and alone: resolved together with the rest, pip may choose a build with CUDA packages.
$(VENV)/.core: pyproject.toml $(CONSTRAINTS) CMakeLists.txt $(wildcard native/*)
	test -x $(PY) || python3 -m venv $(VENV)
	$(PIP) install -q -c $(CONSTRAINTS) torch
	$(PIP) install -q -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[hf,lora,lightning,data,plot,ray,dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(PIP) install -q -c $(CONSTRAINTS) -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) demo-out site build *.egg-info
