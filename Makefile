# Everything runs in .venv, an environment that is created once, and again when the requirements of
# the project change. For another Python: make demo PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test docs bench bench-gpu soak check wheel clean

help: ## Show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Create .venv and install intro-pipe with its tools

demo: $(INSTALLED) ## Run the whole pipeline on handwritten digits, offline (a minute or two)
	$(BIN)/intro-pipe demo

# Two processes, one thread each, because more threads slow each other down.
test: $(INSTALLED) ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=2 --dist=loadfile

docs: .venv/.docs ## Build the documentation site in docs/_build; broken links are errors
	$(BIN)/python -m sphinx -E -b html -W --keep-going docs docs/_build
	@echo "open docs/_build/index.html"

bench: $(INSTALLED) .peers ## Compare speed and memory with similar tools, into docs/benchmarks.md (40 minutes)
	PYTHONPATH=$(CURDIR)/.peers $(BIN)/python -m benchmarks --out docs/benchmarks

bench-gpu: $(INSTALLED) ## Check numbers and speed of one GPU (eight minutes; exit code 1 if one fails)
	$(BIN)/python -m benchmarks.gpu

soak: $(INSTALLED) ## Test crashes and damaged files for long: simulation, campaign, fuzzing (two hours)
	$(BIN)/python tests/simulation.py --seeds 100000
	$(BIN)/python tests/campaign.py --rounds 300
	$(BIN)/pytest -m soak
	$(BIN)/pytest tests/test_fuzz.py --hypothesis-profile=soak --timeout=3600
	$(BIN)/python tests/network.py

check: $(INSTALLED) ## Check format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

wheel: $(INSTALLED) ## Build the wheel in dist/, e.g. for ray_cluster.yaml
	rm -rf build dist
	$(BIN)/python -m build --wheel --no-isolation

# The table mentions a peer that cannot be installed.
.peers: benchmarks/peers.txt $(INSTALLED)
	rm -rf $@
	mkdir $@
	grep -v '^#' $< | while read -r peer; do \
	  $(BIN)/python -m pip install --quiet --no-deps --target $@ $$peer || true; done

clean: ## Remove .venv, caches and builds; feature stores stay
	rm -rf .venv .peers build dist docs/_build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find benchmarks cli intro_pipe pipeline stages store tests -name __pycache__ -prune -exec rm -rf {} +

# The packages that build the site; the tests do not need them.
.venv/.docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

# The package of the frost photographs is installed without its dependencies: they are not needed
# here, and one is a second OpenCV that overwrites ours.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "intro-pipe needs Python 3.11 or newer, and '$(PYTHON)' is older or missing: choose one," \
	    "e.g. make $(or $(MAKECMDGOALS),install) PYTHON=python3.12" >&2; exit 1; }
	@echo "installing into .venv: some minutes, once"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch torchvision
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps imagecorruptions-imaug
	@touch $@
