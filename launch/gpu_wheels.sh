#!/usr/bin/env bash
# Downloads the wheels that launch/gpu_check.sh --wheels=FOLDER installs, on a machine with a network.
#
#   bash launch/gpu_wheels.sh [--dry_run] FOLDER
#
# They are for Python 3.12 on x86-64 Linux: what flm_jax imports and an image with JAX, Flax, Optax,
# Orbax, safetensors, SentencePiece and tokenizers lacks, with what its tests import, and tokamax
# with its needs for fused attention. PYTHON names another interpreter, whose pip does it.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
source launch/_launch.sh
folder=""
for argument in "$@"; do
  case $argument in
    --help) usage "$0"; exit 0 ;;
    --dry_run) dry_run=1 ;;
    -*) fail "unknown option $argument; expected --dry_run or --help, and one folder" ;;
    *)
      [ -z "$folder" ] || fail "got two folders, $folder and $argument; expected one"
      folder=$argument
      ;;
  esac
done
[ -n "$folder" ] || fail "no folder; expected the one for the wheels, such as gpu_wheels"
case $folder in /*) ;; *) folder=$here/$folder ;; esac
# Two versions of a wheel in the folder would stop the installation.
if ls "$folder"/*.whl >/dev/null 2>&1; then
  fail "$folder holds wheels already; name a new folder"
fi

library=(grain array_record portpicker psutil cloudpickle ml_collections tensorboardX)
tests=(beartype)
attention=(tokamax qwix einshape immutabledict pydantic pydantic_core annotated_types typing_inspection)
run "${PYTHON:-python3}" -m pip download --no-deps --only-binary=:all: --python-version 3.12 \
  --platform manylinux2014_x86_64 --platform manylinux_2_28_x86_64 -d "$folder" \
  "${library[@]}" "${tests[@]}" "${attention[@]}"
