# make serve       the service alone, in .venv, on http://localhost:8000
# make test        lint, types and tests, in .venv-dev
# make pipeline    photographs in, models/model.onnx and its report out; SOURCE="a.zip b.zip" or a folder, else Kaggle
# make ship        put the model the pipeline made into serving/models/ if it beats the one that serves
# make bench-train  how much faster training is than the plain loop of tutorials; reports/bench-train.json

PYTHON ?= python3
SERVE := .venv
DEV := .venv-dev
export PATH := $(CURDIR)/$(DEV)/bin:$(PATH)

.PHONY: serve test pipeline ship bench-train install-dev
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
	python -m pytest -ra --durations=10 --cov --cov-report=term:skip-covered

pipeline: install-dev
	$(if $(SOURCE),python -m training.params fetch.source="$(SOURCE)")
	dvc repro
	@echo "The model: models/model.onnx. Its report: reports/. All runs: mlflow ui --backend-store-uri sqlite:///mlflow.db"

ship: install-dev
	catsdogs promote

bench-train: install-dev
	python -m training.bench --ablate
	python -m training.scoreboard

install-dev: $(DEV)/.installed
	@command -v chromium >/dev/null || if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
		then apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
		else echo "No chromium here: the tests of the web page will be skipped."; fi

$(SERVE)/.installed: pyproject.toml
	$(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(DEV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
