# make serve       the service alone, in .venv, on http://localhost:8000
# make test        lint, types and tests, in .venv-dev
# make pipeline    photographs in, models/model.onnx and its report out; SOURCE="a.zip b.zip" or a folder, else Kaggle
# make ship        put the model the pipeline made into serving/models/ if it beats the one that serves
# make bench-serve  how fast the service answers, beside its machine's limit and its peers; reports/bench-serve.json
# make soak        a hundred thousand requests: is the last tenth as the first? reports/soak.json
# make image       the service's image, from this checkout, as cats-dogs-inference
# make image-report  how large it is, and how soon ready; reports/image.json
# make test-containers  the image, Compose, deployment and roll-back, with a Docker engine
# make lock        new versions of what the image installs, with their hashes
# make bench-train  how much faster training is than the plain loop of tutorials; reports/bench-train.json

PYTHON ?= python3
SERVE := .venv
DEV := .venv-dev
BENCH := .venv-bench
LOCK := .venv-lock
LOCKED = $(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-annotate \
	--no-emit-index-url --upgrade --custom-compile-command "make lock" --output-file docker/$(1).lock
comma := ,
export PATH := $(CURDIR)/$(DEV)/bin:$(PATH)

.PHONY: serve test test-containers pipeline ship bench-train bench-serve soak image image-labels image-report lock install-dev
.DEFAULT_GOAL := serve

serve: $(SERVE)/.installed
	$(SERVE)/bin/catsdogs serve

test: install-dev
	@echo "── lint ──────────────────────────────────────────────"
	ruff check .
	ruff format --check .
	@echo "── types ─────────────────────────────────────────────"
	mypy
	@echo "── tests ─────────────────────────────────────────────"
	python -m pytest -ra --durations=10 --cov --cov-report=term:skip-covered --ignore=tests/containers
	@coverage json --quiet --include='serving/*,shared/*' -o - | python -c "import json, sys; \
		share = json.load(sys.stdin)['totals']['percent_branches_covered']; \
		print(f'branches of serving/ and shared/ that tests take: {share:.1f} %, of at least 95'); sys.exit(share < 95)"
	@$(MAKE) --no-print-directory test-containers

test-containers: install-dev
	@echo "── containers ────────────────────────────────────────"
	python -m pytest -ra --durations=10 tests/containers

pipeline: install-dev
	$(if $(SOURCE),python -m training.params fetch.source="$(SOURCE)")
	dvc repro
	@echo "The model: models/model.onnx. Its report: reports/. All runs: mlflow ui --backend-store-uri sqlite:///mlflow.db"

ship: install-dev
	catsdogs promote

image:
	docker build -f docker/Dockerfile -t cats-dogs-inference $(if $(PIP_CERT),--secret id=pip_ca$(comma)src=$(PIP_CERT)) \
		$$($(MAKE) --silent image-labels) .

image-report: install-dev
	CATSDOGS_IMAGE_REPORT=reports/image.json python -m pytest -q tests/containers/test_image.py -k small

# What git and the model file know, as build arguments.
image-labels:
	@echo "--build-arg=REVISION=$$(git rev-parse HEAD) --build-arg=VERSION=$$(git describe --tags --always --dirty)" \
		"--build-arg=MODEL_VERSION=$$(sed -n 's/^ *"version": "\(.*\)",*$$/\1/p' serving/models/cats-dogs.int8.json | head -1)"

lock:
	$(PYTHON) -m venv $(LOCK)
	$(LOCK)/bin/pip install --quiet --disable-pip-version-check uv
	grep -o 'setuptools[^"]*' pyproject.toml | head -1 | $(call LOCKED,build) -
	$(call LOCKED,requirements) pyproject.toml

bench-train: install-dev
	python -m training.bench --ablate
	python -m training.scoreboard

bench-serve: $(SERVE)/.installed $(BENCH)/.installed
	@command -v wrk >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update -qq && apt-get install -y -qq --no-install-recommends wrk >/dev/null; \
		else echo "The load generator is missing: install wrk."; exit 2; fi
	$(BENCH)/bin/python -m ops.bench
	$(BENCH)/bin/python -m ops.bench docs

soak: $(SERVE)/.installed $(BENCH)/.installed
	$(BENCH)/bin/python -m ops.bench soak
	$(BENCH)/bin/python -m ops.bench docs

install-dev: $(DEV)/.installed
	@missing=""; for program in chromium haproxy prometheus prometheus-alertmanager; do \
		command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -n "$$missing" ]; then if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		else echo "Not here, so the tests that need them will be skipped:$$missing"; fi; fi

$(SERVE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(BENCH)/.installed: ops/bench/requirements.txt $(SERVE)/.installed
	$(PYTHON) -m venv $(BENCH)
	$(SERVE)/bin/pip freeze --quiet --exclude-editable | grep -E '^(click|numpy|onnxruntime|pillow|starlette|uvicorn)==' \
		| $(BENCH)/bin/pip install --quiet --disable-pip-version-check -r /dev/stdin -r ops/bench/requirements.txt
	@touch $@
