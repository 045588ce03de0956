"""A policy of step sizes for the model of configs/x_prediction/sums_align.py.

python -m flm_jax.train_policy --config=configs/x_prediction/sums_policy.py \
    --workdir=runs/xflow/policy

Hardware: two CPU cores. Duration: 1 to 5 minutes. Expected: the flow with this policy solves 82.7%
of the problems "a+b=" in 2 network calls. The settings of docs/methods/x_prediction.md, "A small
run, on two CPU cores", for the alignment with `mixed` inputs reach 99.3%.
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/xflow by default."""
    return recipe.policy(arg or "runs/xflow")
