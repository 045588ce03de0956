#!/usr/bin/env bash
# Plans a run for machines that are not here: compiles its step and reports memory per device,
# operations, collectives, and whether it fits. Any machine will do; see docs/guides/planning.md.
#
#   bash launch/compile_only.sh [--dry_run] [--extra=tpu|cuda] [--venv=.venv-plan] -- COMPILE_FLAGS
#
# COMPILE_FLAGS are those of flm_jax.compile, such as --config=configs/owt/flm.py
# --vocab_size=50257 --topology=v5e:4x4 --config.mesh.fsdp=16 --json=plan.json. The exit status is
# its: 0 fits, 1 does not fit, 2 bad input. Without --extra, the topology decides.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
program=flm_jax.compile
source launch/_launch.sh
extra="" venv=.venv-plan
parse "extra venv" "$@"
if [ -z "$extra" ]; then
  case " ${train[*]} " in
    *" --topology=h"[12]00:*) extra=cuda ;;
    *) extra=tpu ;;
  esac
fi
case $extra in
  tpu | cuda) ;;
  *) fail "--extra=$extra; expected tpu or cuda" ;;
esac
run make_venv "$venv" "$extra"
run python -m "$program" "${train[@]}"
