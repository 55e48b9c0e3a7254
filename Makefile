# A newcomer needs `make demo` and `make test`; `make help` lists the rest. Works with GNU make 3.81 and later.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test ui serve-flows status overfit find-learning-rate rollback seeds sweep lint clean lock

PYTHON ?=
PORT ?= 5000
BIN := .venv/bin
INSTALLED := .venv/installed
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Where the system's Python was removed or upgraded, .venv is without one, or without its packages: it is made anew.
ALIVE := $(shell [ ! -e $(INSTALLED) ] || $(BIN)/python -c 'import pip' 2>/dev/null || rm -f $(INSTALLED))

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(INSTALLED)  ## run the whole pipeline on the embedded data (7 to 20 minutes on two cores); again: what has changed
	@$(BIN)/python -m flows $(ARGS)

test: $(INSTALLED)  ## run all tests
	@$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(ARGS)

ui: $(INSTALLED)  ## open MLflow (runs, metrics, models) on http://127.0.0.1:5000 (PORT=…)
	@mkdir -p .pipeline
	@case "$$MLFLOW_TRACKING_URI" in \
	  http*) echo "the runs are on $$MLFLOW_TRACKING_URI (MLFLOW_TRACKING_URI): open it in a browser"; exit 0;; \
	esac; \
	export PATH="$(CURDIR)/$(BIN):$$PATH" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false DO_NOT_TRACK=true; \
	exec mlflow ui --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/.pipeline/mlflow.db}" \
	  --artifacts-destination "$(CURDIR)/.pipeline/mlartifacts"

serve-flows: $(INSTALLED)  ## open Prefect (flow runs, logs) on http://127.0.0.1:4200 and run the schedules of prefect.yaml
	@$(BIN)/python -m flows.serve

status: $(INSTALLED)  ## what is running, how far, how long yet; what failed last, and why
	@$(BIN)/python -m flows.status

overfit: $(INSTALLED)  ## can the model of params.yaml learn one batch by heart? (ARGS=translation: a task's)
	@$(BIN)/python -m stages.overfit $(ARGS)

find-learning-rate: $(INSTALLED)  ## try rising learning rates and draw the losses (ARGS=translation: a task's)
	@$(BIN)/python -m stages.find_learning_rate $(ARGS)

rollback: $(INSTALLED)  ## make a task's former champion champion again (ARGS=translation, or ARGS="translation --to 3")
	@$(BIN)/python -m stages.rollback $(ARGS)

seeds: $(INSTALLED)  ## fine-tune and score with other seeds: mean ± sd (ARGS="translation --seeds 3")
	@$(BIN)/python -m stages.seeds $(ARGS)

sweep: $(INSTALLED)  ## search values of params.yaml: trials, the bad ones ended early (ARGS=recipes/sweeps/pretraining.yaml)
	@$(BIN)/python -m flows.sweep $(ARGS)

lint: $(INSTALLED)  ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean: $(INSTALLED)  ## remove what was made here, MLflow's runs and models too (not DVC's cache, not your files)
	@$(BIN)/python -m flows.clean
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch and its CUDA libraries are pinned apart, in requirements-torch.txt, which says why.
lock: $(INSTALLED)  ## pin the newest versions that pyproject.toml allows, in requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --all-extras \
	  -c requirements-torch.txt --custom-compile-command "make lock" pyproject.toml > .venv/lock
	@awk '/^[a-z0-9]/ { skip = /^(torch==|triton==|cuda-|nvidia-)/ && !/^nvidia-ml-py==/ } !skip' .venv/lock \
	  > .venv/lock.pinned
	@mv .venv/lock.pinned requirements.lock
	@rm .venv/lock

# Bytecode is compiled now, or each start would compile it where PYTHONDONTWRITEBYTECODE is set. uv does not read pip's
# configuration, so what pip knows of indexes, folders of wheels and certificates is passed on. Without uv: pip, slower.
$(INSTALLED): requirements.lock requirements-torch.txt
	@rm -f $@
	@if ! $(BIN)/python -c 'import pip; $(SUITABLE)' 2>/dev/null; then \
	  for python in $(CANDIDATES); do \
	    if "$$python" -c '$(SUITABLE)' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "error: no Python 3.11, 3.12 or 3.13 with its venv module found (tried: $(CANDIDATES));" \
	      "install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
	  fi; \
	  echo "creating .venv with $$found"; \
	  "$$found" -m venv --clear .venv; \
	fi
	@echo "installing what requirements.lock and requirements-torch.txt pin"
	@pip="$(BIN)/python -m pip --disable-pip-version-check"; \
	told() { $$pip config get "global.$$1" 2>/dev/null | tr -s ' \n' "$$2" | sed "s/$$2*$$//"; }; \
	if $$pip install --quiet "$$(sed -n 's/^\(uv==[^ ;]*\).*/\1/p' requirements.lock)"; then \
	  find_links=$${UV_FIND_LINKS:-$$(echo $${PIP_FIND_LINKS:-$$(told find-links ' ')} | tr ' ' ,)}; \
	  index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$(told index-url ' ')}}; \
	  extra=$${UV_INDEX:-$${PIP_EXTRA_INDEX_URL:-$$(told extra-index-url ' ')}}; \
	  cert=$${SSL_CERT_FILE:-$${PIP_CERT:-$$(told cert ' ')}}; \
	  [ -z "$$find_links" ] || export UV_FIND_LINKS="$$find_links"; \
	  [ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"; \
	  [ -z "$$extra" ] || export UV_INDEX="$$extra" UV_INDEX_STRATEGY=unsafe-best-match; \
	  [ -z "$$cert" ] || export SSL_CERT_FILE="$$cert"; \
	  uv="$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode"; \
	  $$uv --no-deps --require-hashes -r requirements.lock && $$uv -r requirements-torch.txt; \
	else \
	  echo "uv cannot be installed: pip does the work"; \
	  $$pip install --quiet --no-deps --require-hashes -r requirements.lock && \
	  $$pip install --quiet -r requirements-torch.txt && \
	  { $(BIN)/python -m compileall -q .venv/lib || true; }; \
	fi
	@touch $@
