#!/usr/bin/env bash
# Trains on several GPU nodes of a SLURM cluster, one process a GPU.
#
#   bash launch/slurm.sh [--dry_run] [--nodes=1] [--gpus=8] [--time=24:00:00] [--name=flm]
#       [--partition=P] [--account=A] [--cpus=8] [--venv=.venv] -- TRAIN_FLAGS
#
# Installs into --venv on the shared file system (run it on a login node), then submits. --gpus is
# per node. Three minutes before the time limit, and on preemption, the run saves, exits with 75 and
# is queued again; it continues from there. --dry_run prints the batch script instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
source launch/_launch.sh
nodes=1 gpus=8 time=24:00:00 name=flm partition="" account="" cpus=8 venv=.venv
parse "nodes gpus time name partition account cpus venv" "$@"
for number in "$nodes" "$gpus" "$cpus"; do
  [[ $number =~ ^[1-9][0-9]*$ ]] || fail "got $number; expected a positive number for --nodes, --gpus and --cpus"
done

batch_script() {
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --output=$name-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
${partition:+#SBATCH --partition=$partition
}${account:+#SBATCH --account=$account
}cd $(printf %q "$PWD")
status=0
srun --kill-on-bad-exit=1 $(quoted "$venv/bin/python" -m flm_jax.train "${train[@]}") || status=\$?
if [ "\$status" = 75 ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
EOF
}

if [ "$dry_run" = 1 ]; then
  run make_venv "$venv" cuda
  echo "sbatch <<'END'"
  batch_script
  echo END
else
  command -v sbatch >/dev/null || fail "sbatch not found; run this on a login node of the cluster"
  make_venv "$venv" cuda
  batch_script | sbatch
fi
