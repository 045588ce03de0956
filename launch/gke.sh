#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster through XPK; needs xpk and gcloud, logged in.
#
#   bash launch/gke.sh [--dry_run] --cluster=C --zone=ZONE --name=NAME --type=v5litepod-16
#       [--slices=1] [--project=P] [--image=python:3.12] [--priority=medium] [--restarts=100]
#       -- TRAIN_FLAGS
#
# XPK builds an image of this folder on --image and starts --slices slices; several slices need
# --config.mesh.slices=N among the training flags. Lost slices are restarted and the run continues
# from its last checkpoint, so --workdir must be a bucket (gs://...).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_launch.sh
cluster="" zone="" name="" type="" slices=1 project="" image=python:3.12 priority=medium restarts=100
parse "cluster zone name type slices project image priority restarts" "$@"
for option in cluster zone name type; do
  [ -n "${!option}" ] || fail "no --$option; expected for example --cluster=pods --zone=us-east5-b --name=flm --type=v5litepod-16"
done
case " ${train[*]} " in
  *" --workdir=gs://"*) ;;
  *) fail "no --workdir=gs://... among the training flags; a slice loses its disks" ;;
esac
if [ "$slices" != 1 ]; then
  case " ${train[*]} " in
    *" --config.mesh.slices=$slices "*) ;;
    *) fail "got --slices=$slices; add --config.mesh.slices=$slices to the training flags" ;;
  esac
fi
if [ "$dry_run" = 0 ] && ! command -v xpk >/dev/null; then
  fail "xpk not found; pip install xpk"
fi
place=("--zone=$zone")
if [ -n "$project" ]; then place+=("--project=$project"); fi
command="bash launch/_remote_setup.sh tpu && $(quoted .venv/bin/python -m flm_jax.train --distributed "${train[@]}")"
run xpk workload create "--cluster=$cluster" "--workload=$name" "${place[@]}" \
  "--tpu-type=$type" "--num-slices=$slices" "--priority=$priority" "--max-restarts=$restarts" \
  "--base-docker-image=$image" --script-dir=. "--command=$command"
