# Two commands on a fresh machine with Python 3.11 to 3.13 and make: `make demo` and `make test`.
PYTHONS := 3.13 3.12 3.11
BIN := .venv/bin
READY := .venv/.ready

# The newest of PYTHONS that can make a virtual environment; PYTHON=/path/to/python takes another.
IS_USABLE = import ensurepip, sys; sys.exit("%d.%d" % sys.version_info[:2] not in "$(PYTHONS)")
PYTHON ?= $(shell for python in $(PYTHONS:%=python%) python3 python; do \
	$$python -c '$(IS_USABLE)' 2> /dev/null && { command -v $$python; break; }; done)

.PHONY: setup check-python demo test test-extended test-token fuzz check bench golden clean check-k8s crds chaos soak

setup: $(READY)  ## Make .venv with everything pyproject.toml lists

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "error: found no Python of $(PYTHONS) with venv: install one" \
		"(Debian: python3 and python3-venv), or run make setup PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv

$(READY): pyproject.toml | $(BIN)/python
	@echo "Installing into .venv, with $$($(BIN)/python --version)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## A whole sweep on synthetic cars, end to end, into runs/demo
	$(BIN)/python -m tuning demo

# A process in the place of one that died gets a test that it never starts: xdist waits for ever.
test: $(READY)  ## Tests, in two processes: one has a real Ray cluster of three raylets
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --max-worker-restart 0 -m "not extended"

test-extended: $(READY)  ## Tests that take minutes each, such as lost nodes in an elastic run
	$(BIN)/python -m pytest -m extended

test-token: $(READY)  ## Tests of clusters and jobs, where every cluster asks for a token
	RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$$(openssl rand -hex 32) \
		$(BIN)/python -m pytest -m "ray and not extended" tests/test_cluster_*.py

FUZZ_EXAMPLES ?= 2000
fuzz: $(READY)  ## Minutes of random content for every file that is read back
	THAW_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/test_house_fuzz.py --timeout 3600
	if $(BIN)/python -c "import atheris" 2> /dev/null; then $(BIN)/python -m tests.support.hostile_readers 60; fi

check: $(READY) check-k8s  ## Formatting, lint, types, direction of imports, manifests, workflows
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings
	$(BIN)/lint-imports
	$(BIN)/zizmor --offline --quiet .github/workflows
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

check-python: $(READY)  ## The dependencies resolve for each of PYTHONS; nothing is downloaded
	@set -e; for version in $(PYTHONS); do \
		$(BIN)/pip install --quiet --dry-run --ignore-installed --only-binary :all: \
			--python-version $$version --target .venv/unused --report .venv/report.json '.[dev]'; \
		$(BIN)/python -c "import json; found = json.load(open('.venv/report.json'))['install']; \
			print('Python $$version:', len(found), 'packages, all as wheels')"; done

KUBERAY ?= 1.7.1
CRD_URL = https://raw.githubusercontent.com/ray-project/kuberay/v$(KUBERAY)/ray-operator/config/crd/bases
crds:  ## Fetch the CRDs of KubeRay KUBERAY into k8s/crds, which check-k8s then reads
	@rm -rf k8s/crds.new && mkdir k8s/crds.new
	@for kind in rayclusters rayjobs rayservices raycronjobs; do \
		curl --fail --silent --show-error --location --output k8s/crds.new/ray.io_$$kind.yaml \
			$(CRD_URL)/ray.io_$$kind.yaml || exit 1; done
	@rm -rf k8s/crds && mv k8s/crds.new k8s/crds
	@echo "k8s/crds: CRDs of KubeRay $(KUBERAY)"

ifeq ($(wildcard k8s/crds/*.yaml ../shared/kuberay-crds/*.yaml),)
check-k8s: crds
endif
check-k8s: $(READY)  ## Build and check every overlay of k8s/: schemas, CEL, rules of the operator and ours
	$(BIN)/python -m cluster check-k8s
	$(BIN)/hadolint k8s/Dockerfile

chaos: $(READY)  ## Real runs under faults, into runs/chaos/chaos.md: CHAOS="--seed 1 --only worker"
	$(BIN)/python -m tests.chaos $(CHAOS)

SOAK ?= --minutes 120
soak: $(READY)  ## A sweep and a training for two hours: does what they hold grow? Into runs/soak
	$(BIN)/python -m tests.soak $(SOAK)

bench: $(READY)  ## Compare with the usual tools, one run each, into bench.json
	$(BIN)/python -m tests.bench.ingest
	$(BIN)/python -m tests.bench.prepare
	$(BIN)/python -m tests.bench.start
	$(BIN)/python -m tests.bench.training
	$(BIN)/python -m tests.bench.cpu
	$(BIN)/python -m tests.bench.sweep
	$(BIN)/python -m tests.bench.heads

golden: $(READY)  ## Record golden losses and W&B views again; the commit message says why
	$(BIN)/python -m tests.support.golden

clean:  ## Remove .venv and runs
	rm -rf .venv runs
