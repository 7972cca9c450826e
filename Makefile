# The loop, in its order: make up data train deploy chat down
# STACK=NAME picks the environment; STACK=local (or local-NAME) is this machine, without Azure. BRANCH=NAME is the
# environment of a git branch; STACK then only says where, and STACK=local is this machine again.
# Every target is a call of `python -m …`.
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help setup lock demo doctor cost prices up data train promote deploy chat down env-up env-down env-list reap status rollback logs smoke load teardown bench lint test-slow test

PY := .venv/bin/python
READY := .venv/.ready
LOCAL = $(filter local local-%,$(STACK))
quoted = '$(subst ','\'',$(1))'

ifdef BRANCH
LOCAL := $(or $(LOCAL),$(if $(STACK)$(shell command -v pulumi 2>/dev/null),,local))
WHY := the branch $(BRANCH)$(if $(LOCAL), on this machine)
# Expanded in recipes only: before the setup there is no Python to ask.
override STACK = $(shell $(PY) -m infra.environment name --branch $(call quoted,$(BRANCH)) $(if $(LOCAL),--prefix local))
else ifndef STACK
STACK := $(shell pulumi stack --show-name 2>/dev/null)
WHY := the selected Pulumi stack
ifeq ($(STACK),)
STACK := local
WHY := no Pulumi stack is selected
endif
else
WHY := given
endif

RECIPE ?= $(if $(LOCAL),local,phi-3.5-mini)
DATA ?= data
CONFIG ?= .
Q ?= Who founded Microsoft?
# What differs between Azure and this machine is the environment that a stage runs in, nothing else.
RUN := $(if $(LOCAL),$(PY) -m emulator run -- $(abspath $(PY)),$(PY))

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: stack
stack: $(READY)
	@echo $(call quoted,stack: $(STACK) ($(WHY))) >&2

setup: $(READY)  ## install everything into .venv (about 6 GB, most of it torch with its CUDA libraries)

$(READY): requirements.lock pyproject.toml setup.sh
	@sh setup.sh

lock: $(READY)  ## resolve the dependencies again
	$(PY) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes --all-extras pyproject.toml -o requirements.lock --custom-compile-command "make lock"
	$(PY) -m uv pip compile -q --universal --python-version 3.11 --generate-hashes -c requirements.lock --excludes training/environment/in-the-image.txt training/environment/requirements.in -o training/environment/requirements.txt --custom-compile-command "make lock"

demo: $(READY)  ## the whole loop on this machine: infrastructure, data, train, register, deploy, chat, tear down
	@$(PY) demo.py

doctor: stack  ## find what would fail, before anything is created
	$(RUN) -m infra.preflight --stack $(STACK)

cost: stack  ## what the stack would cost, by the checked-in prices
	$(RUN) -m infra.cost --stack $(STACK)

prices: $(READY)  ## fill infra/prices.json in from Azure's public price list
	$(PY) -m infra.cost --refresh

up: stack  ## create or update the stack's resources
	$(RUN) -m infra.environment up --stack $(STACK) $(if $(BRANCH),--branch $(call quoted,$(BRANCH))) $(if $(TTL),--ttl $(TTL)) $(if $(TEMPLATE),--template $(TEMPLATE)) --config $(CONFIG) $(if $(LOCAL)$(YES),--yes)

data: $(DATA)/card.json $(if $(filter local,$(RECIPE)),$(DATA)/base-model/config.json)  ## prepare the recipe's data

$(DATA)/card.json: | $(READY)
	$(RUN) -m training.dataset --recipe $(RECIPE) --out $(DATA)

$(DATA)/base-model/config.json: $(DATA)/card.json
	$(PY) -m training.small_model --out $(DATA)/base-model --corpus $(DATA)/train.jsonl

train: stack data  ## fine-tune on the stack's cluster and register the model
	$(RUN) -m training.submit --recipe $(RECIPE) --data $(DATA) --stack $(STACK)

promote: stack  ## share a model with a registry: make promote MODEL=NAME[:VERSION] REGISTRY=NAME
	$(RUN) -m training.promote $(call quoted,$(MODEL)) --registry $(call quoted,$(REGISTRY)) --stack $(STACK)

deploy: stack  ## roll the newest approved model out to the endpoint
	$(RUN) -m deployment.rollout --stack $(STACK) $(if $(LOCAL),--yes --soak 5 --keep 0)

chat: stack  ## ask the endpoint: make chat Q="…"; Q= (empty) opens a session, WEB=1 the page in a browser
	$(RUN) -m $(if $(WEB),flow.serve --stack $(STACK) --open,flow.chat --stack $(STACK) $(if $(Q),"$(Q)"))

evaluate-chat: stack  ## put the checked-in questions to the endpoint; the report goes to .runs/evaluation
	$(RUN) -m flow.evaluation --stack $(STACK)

down: stack  ## remove the endpoint, the stack and all it holds; locally stop the emulator too
	$(RUN) -m infra.environment down --stack $(STACK) $(if $(BRANCH),--branch $(call quoted,$(BRANCH))) --config $(CONFIG) $(if $(LOCAL)$(YES),--yes)
	$(if $(BRANCH),,$(if $(LOCAL),$(PY) -m emulator stop))

.PHONY: branch
branch:
	@test -n $(call quoted,$(BRANCH)) || { printf 'error: no branch is named\n  next: make $(firstword $(MAKECMDGOALS)) BRANCH=feat/x\n' >&2; exit 2; }

env-up: branch up  ## an environment for a branch: make env-up BRANCH=feat/x TTL=24

env-down: branch down  ## remove the environment of a branch

env-list: $(READY)  ## the environments, with branch and expiry
	$(RUN) -m infra.environment list

reap: $(READY)  ## list what has expired or lost its branch; with YES=1 remove it
	$(RUN) -m infra.environment reap $(if $(YES),--yes)

status: stack  ## what the endpoint serves, and where a rollout stands
	$(RUN) -m deployment.status --stack $(STACK)

rollback: stack  ## all traffic back to the deployment that served before
	$(RUN) -m deployment.rollback --stack $(STACK)

logs: stack  ## the last lines of what serves
	$(RUN) -m deployment.logs --stack $(STACK)

smoke: stack  ## one question to the endpoint
	$(RUN) -m deployment.smoke --stack $(STACK)

load: stack  ## ask the endpoint at a rate, and draw how long the answers take
	$(RUN) -m deployment.load --stack $(STACK) --out .local/load

teardown: stack  ## delete the stack's endpoints, and nothing else
	$(RUN) -m deployment.teardown --stack $(STACK) $(if $(LOCAL)$(YES),--yes)

.PHONY: guide
guide: $(READY)  ## one of Microsoft's two guides against the local Azure ML: make guide GUIDE=FOLDER with its files
	GUIDE=$(call quoted,$(abspath $(GUIDE))) $(PY) -m pytest tests/emulator/test_guide.py tests/emulator/test_second_guide.py -rs

bench: $(READY)  ## our recipe beside the guide's settings, on this machine; docs/performance.md from the results
	$(PY) -m bench.training
	$(PY) -m bench.page

lint: $(READY)  ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy infra training deployment flow emulator bench demo.py

test-slow: $(READY)  ## the rest: kills, fuzzing, load, the real Pulumi CLI where there is one; an hour and more
	$(PY) -m pytest -m slow

test: $(READY)  ## all fast tests
	$(PY) -m pytest -m "not slow" -n 2 --dist loadfile
