# `make help` lists what there is to make.

SHELL := /bin/bash -o pipefail
PYTHON ?= python3
SERVE := .venv
DEV := .venv-dev
BENCH := .venv-bench
LOCK := .venv-lock
LOCKED = $(LOCK)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --upgrade --custom-compile-command "make lock" --output-file docker/$(1).lock
comma := ,
# A file's tests share fixtures, so one process runs them all, in the order that tests/conftest.py puts them in.
parallel = -n $(1) --dist loadfile --no-loadscope-reorder
# HAProxy is in /usr/sbin, which is not on everybody's path.
export PATH := $(CURDIR)/$(DEV)/bin:$(PATH):/usr/sbin

# $(call install,VENV,ARGUMENTS): pip, with a short line for each package as it comes, and the size of large ones.
install = $(1)/bin/pip install --disable-pip-version-check $(2) | awk '/^Collecting/ { print "  " $$2; fflush() } \
	/Downloading .*\([0-9.]* [GM]B\)/ && (/GB/ || $$(NF - 1) ~ /[0-9][0-9][0-9]/) { print "    " $$(NF - 1), $$NF; fflush() } \
	/^Installing/ { print "  installing"; fflush() }'

# $(call programs,NAMES): Debian's programs, installed where that is allowed, named where it is not.
programs = missing=""; for program in $(1); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	[ -z "$$missing" ] || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
	then echo "Installing$$missing …"; apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else echo "Missing:$$missing"; false; fi

.PHONY: help serve test test-slow test-containers pipeline ship bench-train bench-serve soak siege \
	image image-labels image-report lock install-dev
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' Makefile

serve: $(SERVE)/.installed ## the service on http://localhost:8000, installed without torch into .venv
	$(SERVE)/bin/catsdogs serve

# In CI, where nobody waits, it is measured which branches tests take; that takes a fifth more time.
covered = $(if $(CI),--cov --cov-report=term:skip-covered)

test: install-dev ## lint, types and tests in about a quarter of an hour
	@echo "── lint ──────────────────────────────────────────────"
	ruff check .
	ruff format --check .
	@echo "── types ─────────────────────────────────────────────"
	mypy
	@echo "── tests ─────────────────────────────────────────────"
	python -m pytest $(call parallel,3) -ra --durations=10 -m "not slow" $(covered)
	@[ -z "$(covered)" ] || coverage json --quiet --include='serving/*,shared/*' -o - | python -c "import json, sys; \
		share = json.load(sys.stdin)['totals']['percent_branches_covered']; \
		print(f'branches of serving/ and shared/ that tests take: {share:.1f} %, of at least 95'); sys.exit(share < 95)"

test-slow: test-containers ## the other tests: containers, whole pipelines, crashes, long fuzzing
	python -m pytest $(call parallel,2) -ra --durations=10 --timeout 1800 -m slow --ignore=tests/containers

# By themselves: a deployment that is watched for seconds must get its requests in them.
test-containers: install-dev ## of those, the image, Compose, deployment and rollback, with a Docker engine
	python -m pytest -ra --durations=10 tests/containers

install-dev: $(DEV)/.installed ## everything the tests need, into .venv-dev
	@$(call programs,chromium haproxy prometheus prometheus-alertmanager wrk) \
		|| echo "Tests that need them are skipped."

# Photographs of your own are trained on in a folder that git ignores, with the runs in the same MLflow store.
OWN := own
within = $(if $(SOURCE),cd $(OWN) && export MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" &&)
folder = $(if $(SOURCE),$(OWN)/)
again = $(if $(SOURCE), SOURCE='$(SOURCE)')

pipeline: $(DEV)/.training ## train a model: SOURCE="a.zip b.zip" or a folder, else the photographs from Kaggle
	$(if $(SOURCE),@python -m training.own $(OWN) --source "$$SOURCE" --classes "$$CLASSES" --set "$$SET")
	$(within) dvc repro
	@echo "The model: $(folder)models/model.int8.onnx, and $(folder)models/model.onnx. Its report: $(folder)reports/report.html."
	@echo "To serve it: CATSDOGS_MODEL=$(folder)models/model.int8.onnx make serve"
	@echo "To put it into service if it beats the one that serves: make ship$(again)"
	@echo "All runs: $(DEV)/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db"

ship: $(DEV)/.training ## put the trained model into serving/models/ if it beats the one that serves
	$(within) catsdogs promote

image: ## the image of the service, from this checkout, as cats-dogs-inference
	docker build -f docker/Dockerfile -t cats-dogs-inference $(if $(PIP_CERT),--secret id=pip_ca$(comma)src=$(PIP_CERT)) \
		$$($(MAKE) --silent image-labels) .

# What git and the model file know, as build arguments. A tag v1.2.3 is version 1.2.3.
image-labels:
	@echo "--build-arg=REVISION=$$(git rev-parse HEAD)" \
		"--build-arg=VERSION=$$(git describe --tags --always --dirty | sed 's/^v//')" \
		"--build-arg=MODEL_VERSION=$$(sed -n 's/^ *"version": "\(.*\)",*$$/\1/p' serving/models/cats-dogs.int8.json | head -1)"

image-report: install-dev ## how large the image is and how soon it is ready; reports/image.json
	CATSDOGS_IMAGE_REPORT=reports/image.json python -m pytest -q tests/containers/test_image.py -k small

bench-serve: $(SERVE)/.installed $(BENCH)/.installed ## how fast the service answers, beside its peers; reports/bench-serve.json
	@$(call programs,wrk)
	$(BENCH)/bin/python -m ops.bench
	$(BENCH)/bin/python -m ops.bench docs

soak: $(SERVE)/.installed $(BENCH)/.installed ## a hundred thousand requests, the first tenth beside the last; reports/soak.json
	$(BENCH)/bin/python -m ops.bench soak

siege: $(SERVE)/.installed $(BENCH)/.installed ## an hour in which a tenth of the clients misbehave; reports/siege.json
	$(BENCH)/bin/python -m ops.bench siege
	$(BENCH)/bin/python -m ops.bench docs

bench-train: install-dev ## how fast training is, beside the loop of tutorials; reports/bench-train.json
	python -m training.bench --ablate
	python -m training.scoreboard

lock: ## new versions of what make serve, the image, a deployment and training install, with their hashes
	$(PYTHON) -m venv $(LOCK)
	$(call install,$(LOCK),uv)
	grep -o 'setuptools[^"]*' pyproject.toml | head -1 | $(call LOCKED,build) -
	grep -oE '(click|httpx|msgspec)>[^"]*' pyproject.toml | $(call LOCKED,deploy) -
	$(call LOCKED,requirements) pyproject.toml
	$(call LOCKED,train) --extra train pyproject.toml

# One package comes as source only; what builds it, and this project, is locked too.
$(SERVE)/.installed: pyproject.toml docker/build.lock docker/requirements.lock
	$(PYTHON) -m venv $(SERVE)
	@$(call install,$(SERVE),--require-hashes --no-deps --requirement docker/build.lock)
	@$(call install,$(SERVE),--require-hashes --no-deps --no-build-isolation --requirement docker/requirements.lock)
	@$(call install,$(SERVE),--no-deps --no-build-isolation --editable .)
	@touch $@

$(DEV)/.installed: pyproject.toml
	@echo "Installing into $(DEV), the first time for some minutes:"
	$(PYTHON) -m venv $(DEV)
	@$(call install,$(DEV),--editable '.[dev]')
	@touch $@ $(DEV)/.training

# A part of what the tests need, for those who train and do not develop.
$(DEV)/.training: pyproject.toml
	@echo "Installing what training needs into $(DEV), the first time for some minutes. For Linux torch comes with CUDA:"
	@echo "about 3 GB to download, 6 GB on disk. Without a GPU, a tenth of that is enough: stop this, choose Pip and CPU on"
	@echo "https://pytorch.org/get-started/locally and give the address after --index-url as PIP_EXTRA_INDEX_URL=ADDRESS."
	$(PYTHON) -m venv $(DEV)
	@$(call install,$(DEV),--editable '.[train]')
	@touch $@

$(BENCH)/.installed: ops/bench/requirements.txt $(SERVE)/.installed
	$(PYTHON) -m venv $(BENCH)
	@$(SERVE)/bin/pip freeze --quiet --exclude-editable | grep -E '^(click|msgspec|numpy|onnxruntime|pillow|starlette|uvicorn)==' \
		| $(call install,$(BENCH),-r /dev/stdin -r ops/bench/requirements.txt)
	@touch $@
