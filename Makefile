# Each target sets up what it needs in the repository's own folders, once: `make demo` is enough after a clone.

PYTHON ?= python3
ARGS ?=
BENCH ?= embedding quality formats ingest overload search segments serving cache memory
UV := uv==0.13.8
COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-clients test-torch check format bench docs lock clean

help:
	@echo "make demo     search real text with a real model, in a database of its own"
	@echo "make serve    the HTTP server"
	@echo "make test     the tests                    (ARGS='-k fusion' picks some)"
	@echo "make test-clients  other people's clients against a live server, in .venv-clients"
	@echo "make test-torch  those of models in PyTorch, in .venv-bench"
	@echo "make check    format, lint, types, layers"
	@echo "make format   put the code in order"
	@echo "make bench    the benchmarks, in .venv-bench  (BENCH=quality picks one)"
	@echo "make docs     write the generated pages of docs/"
	@echo "make lock     write the lock files         (ARGS=--upgrade takes newer versions)"
	@echo "make clean    remove environments and caches"

demo: .venv/installed
	.venv/bin/likewise demo $(ARGS)

serve: .venv/installed
	.venv/bin/likewise serve $(ARGS)

test: .venv/installed
	.venv/bin/python -m pytest -n auto --maxprocesses 4 $(ARGS)

test-clients: .venv/installed .venv-clients/installed
	.venv-clients/bin/python -m pytest -c tests/clients/pytest.ini tests/clients $(ARGS)

test-torch: .venv-bench/installed
	.venv-bench/bin/python -m pytest tests/embedding/test_torch.py tests/embedding/test_runtimes.py \
		tests/contracts/test_provider.py $(ARGS)

check: .venv/installed
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

format: .venv/installed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: .venv-bench/installed
	@set -e; for one in $(BENCH); do echo "$$one:"; .venv-bench/bin/python -m benchmarks.$$one $(ARGS); done

docs: .venv/installed
	.venv/bin/python -m tools.settings_page

lock: .venv-lock/installed
	$(COMPILE) --no-config --extra dev pyproject.toml -o requirements.lock $(ARGS)
	$(COMPILE) --config-file benchmarks/uv.toml pyproject.toml benchmarks/requirements.in -c requirements.lock \
		--no-emit-package torch -o benchmarks/requirements.lock $(ARGS)
	$(COMPILE) --no-config tests/clients/requirements.in -c requirements.lock -o tests/clients/requirements.lock $(ARGS)

clean:
	rm -rf .venv .venv-bench .venv-clients .venv-lock dist
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A folder's `installed` file is newer than what was installed from, so pip runs only when a lock file has changed.

.venv/installed: requirements.lock pyproject.toml
	$(call environment,.venv)
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The last line brings torch, the one package without digests: pip takes PyTorch's CPU build where it finds that
# (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL), else the common one, which on Linux comes with 5 GB of CUDA libraries.
.venv-bench/installed: benchmarks/requirements.lock benchmarks/requirements.in pyproject.toml
	$(call environment,.venv-bench)
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r benchmarks/requirements.lock
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	.venv-bench/bin/pip install --quiet --disable-pip-version-check -r benchmarks/requirements.in
	@touch $@

.venv-clients/installed: tests/clients/requirements.lock
	$(call environment,.venv-clients)
	.venv-clients/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/clients/requirements.lock
	@touch $@

.venv-lock/installed: Makefile
	$(call environment,.venv-lock)
	.venv-lock/bin/pip install --quiet --disable-pip-version-check $(UV)
	@touch $@

define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Likewise needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(1), which takes a minute or two the first time."
	@$(1)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(1)
endef
