# Everything runs in a virtual environment that make builds from pyproject.toml and constraints.txt.
# Flags for an experiment: make cartpole-dpo ARGS="--seeds 1 2 3 --num-pairs 200"

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools-installed
SERVER := $(VENV)/.server-installed
WITH_SERVER := '.[experiments,label]'
EVERYTHING := '.[dev,experiments,label]'
EXPERIMENTS := cartpole-dpo acrobot-dpo cartpole-rlhf acrobot-rlhf
ARGS ?=

.PHONY: help install $(EXPERIMENTS) study evidence controls sweep label teach report test pytest lint format lock docs wheel \
        bench bench-peer bench-imitation clean

help:
	@echo "make cartpole-dpo | acrobot-dpo | cartpole-rlhf | acrobot-rlhf   one experiment, all seeds"
	@echo "make study     all four"
	@echo "make evidence  claims about preferences, tested on 100 seeds (SEEDS=10 for fewer): a page with figures"
	@echo "make controls  rewards of zero or of a random network, and labels from a coin"
	@echo "make sweep     beta or kl_coef x pairs x temperature x seeds: heat maps, return against KL"
	@echo "make label     a page that shows pairs of a finished run in the browser and asks which one is better"
	@echo "make teach     the same in rounds: the policy plays, you answer, it learns"
	@echo "make report    write report.html of every experiment in results/ again, without training"
	@echo "make test      formatter check, linter, type checker, documentation and every test"
	@echo "make lint      the first three; make format corrects what can be corrected"
	@echo "make docs      build the documentation with the API reference into site/"
	@echo "make wheel     build it, install it in an environment of its own and run examples/three_seeds.py there"
	@echo "make lock      write constraints.txt again, from the newest versions"
	@echo "make bench     how fast it is, as ratios measured in one run, and what changed since the last one"
	@echo "make bench-peer   PPO's speed against rejax's, which gets a virtual environment of its own"
	@echo "make bench-imitation   RLHF against imitation's, in returns and seconds: about half an hour, an environment of its own"
	@echo "make clean     remove the virtual environment and the caches; results stay"
	@echo 'flags: make cartpole-dpo ARGS="--help"'

install: $(TOOLS)

# $(1) is a Python, $(2) what it gets. uv takes seconds where pip takes most of a minute; pip knows more package indexes.
define get
$(1) -m uv pip install --quiet --python $(1) --constraint constraints.txt $(2) 2>/dev/null \
|| $(1) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(2)
endef

# What runs an experiment. The developers' tools come with the first make test.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"jaxpref needs Python 3.11 or newer, $(PYTHON) is {v[0]}.{v[1]}: set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv 2>/dev/null
	$(call get,$(BIN)/python,--editable '.[experiments]')
	@touch $@

$(TOOLS): $(STAMP)
	$(call get,$(BIN)/python,--editable $(EVERYTHING))
	@touch $@

$(EXPERIMENTS): $(STAMP)
	@$(BIN)/python -m experiments.$(subst -,_,$@) $(ARGS)

study: $(STAMP)
	@$(BIN)/python -m experiments.study $(ARGS)

bench: $(STAMP)
	@$(BIN)/python -m experiments.bench $(ARGS)

# Seeds 0 to SEEDS - 1.
evidence: $(STAMP)
	@$(BIN)/python -m experiments.evidence --num-seeds $(or $(SEEDS),100) $(ARGS)

controls: $(STAMP)
	@$(BIN)/python -m experiments.evidence --claims controls --num-seeds $(or $(SEEDS),20) --out results/controls $(ARGS)

sweep: $(STAMP)
	@$(BIN)/python -m experiments.sweep $(if $(SEEDS),--num-seeds $(SEEDS)) $(ARGS)

# What the page for people needs beyond an experiment.
$(SERVER): $(STAMP)
	$(call get,$(BIN)/python,--editable $(WITH_SERVER))
	@touch $@

label teach: $(SERVER)
	@$(BIN)/python -m experiments.$@ $(ARGS)

report: $(STAMP)
	@$(BIN)/python -m experiments.reporting.page $(ARGS)

lint: $(TOOLS)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(TOOLS)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# All three at the same time. Each of the first two uses one core for some seconds.
test: $(TOOLS)
	@$(MAKE) --no-print-directory --jobs 3 lint docs pytest

pytest: $(TOOLS)
	$(BIN)/pytest $(ARGS)

# Strict: a broken link or a missing docstring fails it. With --quiet it would not be strict.
docs: $(TOOLS)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean

# Without the checkout on the path: the example runs in an empty folder.
wheel:
	rm -rf build dist .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt dist/*.whl
	cp examples/three_seeds.py .venv-wheel
	cd .venv-wheel && bin/python -P three_seeds.py
	rm -rf build .venv-wheel

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check $(EVERYTHING)
	.venv-lock/bin/python -m pip freeze --exclude jaxpref > constraints.txt
	rm -rf .venv-lock

# rejax needs an older gymnax than jaxpref does.
.venv-peer/.installed: constraints-peer.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-peer.txt rejax
	@touch $@

bench-peer: $(STAMP) .venv-peer/.installed
	@$(BIN)/python -m experiments.bench --sections peer --repeats 9 --out results/bench-peer $(ARGS)

# imitation needs an older NumPy and gymnasium.
.venv-imitation/.installed: constraints-imitation.txt
	$(PYTHON) -m venv .venv-imitation
	.venv-imitation/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-imitation.txt imitation
	@touch $@

bench-imitation: $(STAMP) .venv-imitation/.installed
	@$(BIN)/python -m experiments.bench --sections imitation --out results/bench-imitation $(ARGS)

clean:
	rm -rf $(VENV) .venv-peer .venv-imitation .cache site .pytest_cache .mypy_cache .ruff_cache .hypothesis
