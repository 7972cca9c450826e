# The loop, in its order: make up data train deploy chat down
# STACK=NAME picks the environment; STACK=local (or local-NAME) is this machine, without Azure. Every target is a call of `python -m …`.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup lock demo doctor cost prices up data train deploy chat down status logs lint test

ifndef STACK
STACK := $(shell pulumi stack --show-name 2>/dev/null)
WHY := the selected Pulumi stack
ifeq ($(STACK),)
STACK := local
WHY := no Pulumi stack is selected
endif
else
WHY := given
endif

LOCAL := $(filter local local-%,$(STACK))
RECIPE ?= $(if $(LOCAL),local,phi-3.5-mini)
DATA ?= data
CONFIG ?= .
Q ?= Who founded Microsoft?
PY := .venv/bin/python
READY := .venv/.ready
# What differs between Azure and this machine is the environment that a stage runs in, nothing else.
RUN := $(if $(LOCAL),$(PY) -m emulator run -- $(abspath $(PY)),$(PY))

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: stack
stack: $(READY)
	@echo "stack: $(STACK) ($(WHY))" >&2

setup: $(READY)  ## install everything into .venv (about 6 GB, most of it torch with its CUDA libraries)

$(READY): requirements.lock pyproject.toml setup.sh
	@sh setup.sh

lock: $(READY)  ## resolve the dependencies again
	$(PY) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes --all-extras pyproject.toml -o requirements.lock --custom-compile-command "make lock"

demo: $(READY)  ## the whole loop on this machine: infrastructure, data, train, register, deploy, chat, tear down
	@$(PY) demo.py

doctor: stack  ## find what would fail, before anything is created
	$(RUN) -m infra.preflight --stack $(STACK)

cost: stack  ## what the stack would cost, by the checked-in prices
	$(RUN) -m infra.cost --stack $(STACK)

prices: $(READY)  ## fill infra/prices.json in from Azure's public price list
	$(PY) -m infra.cost --refresh

up: stack  ## create or update the stack's resources
	$(RUN) -m infra.environment up --stack $(STACK) --config $(CONFIG) $(if $(LOCAL),--yes)

data: $(DATA)/card.json $(if $(filter local,$(RECIPE)),$(DATA)/base-model/config.json)  ## prepare the recipe's data

$(DATA)/card.json: | $(READY)
	$(PY) -m training.dataset --recipe $(RECIPE) --out $(DATA)

$(DATA)/base-model/config.json: $(DATA)/card.json
	$(PY) -m training.small_model --out $(DATA)/base-model --corpus $(DATA)/train.jsonl

train: stack data  ## fine-tune on the stack's cluster and register the model
	$(RUN) -m training.submit --recipe $(RECIPE) --data $(DATA) --stack $(STACK)

deploy: stack  ## roll the newest approved model out to the endpoint
	$(RUN) -m deployment.rollout --stack $(STACK) $(if $(LOCAL),--yes)

chat: stack  ## ask the endpoint: make chat Q="…"; Q= (empty) opens a session
	$(RUN) -m flow.chat --stack $(STACK) $(if $(Q),"$(Q)")

down: stack  ## remove the endpoint, the stack and all it holds; locally stop the emulator too
	$(RUN) -m infra.environment down --stack $(STACK) --config $(CONFIG) $(if $(LOCAL),--yes)
	$(if $(LOCAL),$(PY) -m emulator stop)

status: stack  ## what the endpoint serves
	$(RUN) -m deployment.status --stack $(STACK)

lint: $(READY)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy infra training deployment flow emulator demo.py

test: $(READY)  ## all fast tests
	$(PY) -m pytest -m "not slow"
