"""A policy of step sizes for the aligned model of functions, rewarded by their unit tests.

python -m flm_jax.train_policy --config=configs/x_prediction/functions_policy.py \
    --workdir=runs/functions/policy

Hardware: one CPU core. Duration: 2 minutes beside other work. Expected: programs of the flow with
this policy pass their unit tests for 97.5% of the problems in 4 network calls
(docs/methods/x_prediction.md, "The paper's policy").
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/functions by default."""
    config = recipe.policy(arg or "runs/functions")
    config.reward = "unit_tests"
    config.prompts = 1000
    config.completion = 0.0
    config.policy.start = 0.7
    config.optim.lr = 3e-3
    config.train.steps = 300
    return config
