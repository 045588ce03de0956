"""A policy of step sizes for the model of configs/x_prediction/sums_align.py.

python -m flm_jax.train_policy --config=configs/x_prediction/sums_policy.py \
    --workdir=runs/xflow/policy

Hardware: two CPU cores. Duration: 1 to 5 minutes. Expected: with the settings of
docs/methods/x_prediction.md, "The paper's policy", for the alignment with `mixed` inputs the flow
solves 99.4% of the problems "a+b=" in 2 network calls.
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/xflow by default."""
    return recipe.policy(arg or "runs/xflow")
