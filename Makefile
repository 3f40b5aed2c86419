# Two commands do everything:  make run  (an agent answers)  and  make test  (all tests).
# Another Python:  make test PYTHON=python3.12

PYTHON ?= python3
PROMPT ?= In one sentence: what does an operating system do?
BIN := .venv/bin
export PROMPT
# Most tests start processes, which read bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test long coverage setup check lint docs bench peers clean

run:
	@$(PYTHON) userland/bootstrap.py answer
	@$(BIN)/llmasos run "$$PROMPT"
	@$(PYTHON) userland/bootstrap.py background

# Tests of a file stay together: they share machines. Most tests wait, so there are twice as
# many workers as cores. tests/conftest.py knows which files take long. (Groups of xdist 3.8 have no
# effect under pytest 9.2.)
WORKERS := --numprocesses 4 --dist loadfile --no-loadscope-reorder

test: setup
	@$(BIN)/python -m compileall -q kernel drivers userland policies
	@$(BIN)/python -m pytest $(WORKERS)

# The slow tests: 50 kills, the fuzzer at full length, each quantisation; then a soak, alone, because
# the load of other tests changes its slope.
long: setup
	@$(BIN)/python -m pytest -m long $(WORKERS) --deselect tests/userland/test_soak.py
	@$(BIN)/python -m pytest -m long tests/userland/test_soak.py

# The tests with branch coverage of the kernel, in the daemons too.
coverage: setup
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(WORKERS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report
	@$(BIN)/coverage json --quiet -o .coverage_branches.json
	@$(BIN)/python tests/branches.py .coverage_branches.json 95

setup:
	@$(PYTHON) userland/bootstrap.py

check: lint test

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=src $(BIN)/lint-imports

# The generated parts of README.md and docs/, and the matrix of permissions.
docs: setup
	@$(BIN)/python tests/docs.py
	@$(BIN)/python tests/kernel/authorisation.py

bench: setup
	@$(BIN)/llmasos bench --out benchmarks/results

# What `llmasos bench throughput` compares with.
peers: setup
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--build-constraint constraints.txt --editable '.[peers]'

clean:
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
