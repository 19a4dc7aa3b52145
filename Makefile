# `make demo` and `make test` set up all they need in .venv; Python >= 3.10 with venv and a C++17
# compiler must be there. nvcc is used where it is found; DETR_FAST_CUDA=OFF refuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := CMakeLists.txt setup.py $(shell find cmake csrc -type f)
CPP := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')

.PHONY: demo test lint docs format bench results gpu gpu-tests gpu-sanitize gpu-bench resources package release clean

demo: $(VENV)/.installed
	$(BIN)/detr-fast demo --output runs/demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# The site, in build/docs; a warning or a link that leads nowhere is an error.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

bench: $(VENV)/.peers
	$(BIN)/python -m pytest benchmarks

# All that the README and its chart say of speed, on a quiet machine: an hour; then the whole models of transformers.
results: RESULTS = benchmarks/results/$(shell date +%F)-cpu-$(shell nproc)core.json
results: $(VENV)/.peers
	mkdir -p build
	$(BIN)/python -m benchmarks --device cpu --json build/operators.json
	$(BIN)/python -m benchmarks --device cpu --operator model --threads 2 --json build/models.json
	$(BIN)/python -m benchmarks merge build/operators.json build/models.json --out $(RESULTS)
	$(BIN)/python -m benchmarks plot $(RESULTS)
	$(BIN)/python -m benchmarks.integrations --json benchmarks/results/integrations.json

# On a machine with an NVIDIA GPU, with the packages of $(PYTHON) as they are: build, then tests, sanitizers, benchmarks,
# each part in under nine minutes. What has passed on the same sources is not repeated.
gpu:
	PYTHON=$(PYTHON) benchmarks/gpu.sh

gpu-tests gpu-sanitize gpu-bench:
	PYTHON=$(PYTHON) benchmarks/gpu.sh $(@:gpu-%=%)

resources: $(VENV)/.installed
	$(BIN)/python -m benchmarks resources

package: $(VENV)/.installed
	sh tests/package.sh $(BIN)/python

# The sdist and the wheel for all architectures, in dist/.
release: $(VENV)/.installed
	DETR_FAST_CUDA=ON DETR_FAST_CUDA_ARCHS= sh tests/package.sh $(BIN)/python dist

clean:
	rm -rf build dist runs *.egg-info detr_fast/_C*.so

# torch comes first and pinned, so that no later requirement picks another build of it.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(PIP) install -c constraints.txt -e ".[train,test,lint,docs]"
	touch $@

# torch-ms-deform-attn is compiled against the torch that is installed here, never taken from a cache.
$(VENV)/.peers: $(VENV)/.installed
	$(PIP) install -c constraints.txt -e ".[bench]" setuptools ninja
	$(PIP) install -c constraints.txt --no-build-isolation --no-cache-dir torch-ms-deform-attn
	touch $@
