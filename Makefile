PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo serve test test-mariadb test-aws check full clean

.venv/made: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/made-dev: requirements-dev.txt .venv/made
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

demo: .venv/made
	$(BIN)/python manage.py demo

serve: .venv/made
	$(BIN)/python manage.py migrate --verbosity 0
	$(BIN)/python manage.py serve

test: .venv/made-dev
	$(BIN)/python -m pytest -n auto -m "not aws"

# The same suite on a private MariaDB server.
test-mariadb: .venv/made-dev
	$(BIN)/python -m tests.mariadb $(BIN)/python -m pytest -n auto -m "not aws"

# The production profile, on MariaDB and on an AWS on loopback; what was asked of it is in var/test-aws/requests.jsonl.
test-aws: .venv/made-dev
	$(BIN)/python -m tests.mariadb $(BIN)/python -m pytest -n auto -m aws --durations=10

# What is too long for each change.
full: test test-mariadb
	DYNABENCH_TEST_EVALUATIONS=200 $(MAKE) test-aws

check: .venv/made-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dynabench_site tasks_catalog submissions builds evaluations
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
	$(BIN)/python manage.py check

clean:
	rm -rf .venv var .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
