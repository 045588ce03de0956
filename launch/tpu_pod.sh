#!/usr/bin/env bash
# Trains on a Cloud TPU slice, got as a queued resource; needs gcloud, logged in.
#
#   bash launch/tpu_pod.sh [--dry_run] --name=NAME --zone=ZONE --type=v5litepod-16
#       [--runtime=v2-alpha-tpuv5-lite] [--project=P] [--spot=1] [--keep=1] -- TRAIN_FLAGS
#
# Asks for the slice, waits for it, copies this folder to every host, installs, and runs the same
# command on all of them. A preempted slice is asked for anew and the run continues from its last
# checkpoint, so --workdir must be a bucket (gs://...). The slice is deleted at the end unless
# --keep=1.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_launch.sh
name="" zone="" type="" runtime=v2-alpha-tpuv5-lite project="" spot=0 keep=0
parse "name zone type runtime project spot keep" "$@"
for option in name zone type; do
  [ -n "${!option}" ] || fail "no --$option; expected for example --name=flm --zone=us-west4-a --type=v5litepod-16"
done
case " ${train[*]} " in
  *" --workdir=gs://"*) ;;
  *) fail "no --workdir=gs://... among the training flags; a slice loses its disks" ;;
esac
if [ "$dry_run" = 0 ] && ! command -v gcloud >/dev/null; then
  fail "gcloud not found; install the Google Cloud CLI and run gcloud auth login"
fi
place=("--zone=$zone")
if [ -n "$project" ]; then place+=("--project=$project"); fi
tpus=(gcloud compute tpus)
setup='sudo apt-get install -y -q python3-venv && cd flm_jax && bash launch/_remote_setup.sh tpu'
command="cd flm_jax && $(quoted .venv/bin/python -m flm_jax.train --distributed "${train[@]}")"

create() {
  local spot_flag=()
  if [ "$spot" = 1 ]; then spot_flag=(--spot); fi
  run "${tpus[@]}" queued-resources create "$name" "--node-id=$name" "${place[@]}" \
    "--accelerator-type=$type" "--runtime-version=$runtime" "${spot_flag[@]}"
}

delete() {
  run "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet
}

state() {
  "${tpus[@]}" queued-resources describe "$name" "${place[@]}" --format='value(state.state)'
}

# Waits until the slice is there; status 1 when it was refused or lost.
await() {
  if [ "$dry_run" = 1 ]; then
    echo "# until ACTIVE:"
    run "${tpus[@]}" queued-resources describe "$name" "${place[@]}" '--format=value(state.state)'
    return
  fi
  local now
  while true; do
    now=$(state)
    echo "$(date +%T) $name: $now"
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | SUSPENDING) return 1 ;;
    esac
    sleep 30
  done
}

on_all() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${place[@]}" --worker=all --command="$1"
}

if [ "$keep" = 0 ]; then trap delete EXIT; fi
while true; do
  create
  if await; then
    on_all "mkdir -p flm_jax"
    run "${tpus[@]}" tpu-vm scp --recurse flm_jax configs launch setup.py README.md \
      "$name:flm_jax/" "${place[@]}" --worker=all
    on_all "$setup"
    if on_all "$command"; then break; fi
    if [ "$(state)" = ACTIVE ]; then fail "the training command failed; its message is above"; fi
  fi
  echo "$name was lost; asking for it again"
  delete
done
