#!/usr/bin/env bash
# Builds the site of docs/ into site/ strictly: a page that is not in mkdocs.yml, a link or an anchor that leads
# nowhere is an error. `bash launch/docs.sh serve` shows it at http://127.0.0.1:8000 and follows changes.
# Only the packages of the extra docs are installed, not the library.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
read -ra packages <<<"$(sed -n 's/^ *"docs": \[\(.*\)\],$/\1/p' setup.py | tr -d '",')"
make_venv .venv-docs docs "${packages[@]}"
if [ "${1:-}" = install ]; then exit; fi
export NO_MKDOCS_2_WARNING=1
# Not --quiet: it silences the warnings that --strict counts.
exec python -m mkdocs "${1:-build}" --strict
