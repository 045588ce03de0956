#!/usr/bin/env bash
# Trains on the devices of this machine: CPU, one or several GPUs, or a single TPU host.
#
#   bash launch/single_node.sh [--dry_run] [--extra=cuda|tpu|none] [--venv=.venv] -- TRAIN_FLAGS
#
# Installs into --venv first (--extra says for which devices; default: cuda where nvidia-smi is
# found). Run it again to continue; the exit status is that of flm_jax.train.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
source launch/_launch.sh
extra="" venv=.venv
parse "extra venv" "$@"
if [ -z "$extra" ]; then
  if command -v nvidia-smi >/dev/null; then extra=cuda; else extra=none; fi
fi
case $extra in
  cuda | tpu) extras=$extra ;;
  none) extras=plots ;;
  *) fail "got --extra=$extra; expected cuda, tpu or none" ;;
esac
run make_venv "$venv" "$extras"
run python -m flm_jax.train "${train[@]}"
