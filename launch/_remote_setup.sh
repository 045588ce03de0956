# shellcheck shell=bash
# Run on a host that was sent this folder: installs into .venv with the extras $1.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
make_venv .venv "$1"
