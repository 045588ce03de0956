# shellcheck shell=bash
# Sourced by the launch scripts: makes the virtual environment $1 if it is missing, installs flm_jax
# with the extras $2 into it, or the packages $3 and following alone, and puts its programs first on PATH.
# PYTHON names another interpreter.

make_venv() {
  local folder=$1 extras=$2 python=${PYTHON:-}
  if [ -z "$python" ]; then
    local name
    for name in python3.13 python3.12 python3.11 python3; do
      if command -v "$name" >/dev/null && "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$name
        break
      fi
    done
  fi
  if [ -z "$python" ]; then
    echo "error: no Python 3.11 or newer with venv found; install one, or set PYTHON to its path." >&2
    exit 2
  fi
  [ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
  shift 2
  [ $# -gt 0 ] || set -- --editable ".[$extras]"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  export PATH="$PWD/$folder/bin:$PATH"
}
