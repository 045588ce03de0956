#!/usr/bin/env bash
# Lints and tests in a virtual environment of its own (.venv-test). Arguments go to pytest; --slow adds
# trainings of several minutes and the commands of the documentation.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
make_venv .venv-test dev
ruff check .
ruff format --check .
mypy
# Two processes, a file of tests in one of them: most of the time goes into compiling on one core. Files
# come in the order of tests/conftest.py, the longest first. If a process dies the run ends with its test as
# failed: with a new process in its place pytest-xdist waits for ever.
exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0 --durations=30 "$@"
