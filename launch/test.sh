#!/usr/bin/env bash
# Lints and tests in a virtual environment of its own (.venv-test). Arguments go to pytest; --slow adds
# the trainings of several minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
make_venv .venv-test dev
ruff check .
ruff format --check .
mypy
exec python -m pytest -q --durations=30 "$@"
