"""A policy of step sizes for the small aligned model of functions, rewarded by unit tests; CPU.

python -m flm_jax.train_policy --config=configs/xflow_functions_policy.py \
    --workdir=runs/functions/policy
"""

from flm_jax.defaults import policy_config


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/functions by default."""
    config = policy_config()
    config.model = f"{arg or 'runs/functions'}/align"
    config.calls = (2, 4)
    config.reward = "unit_tests"
    config.prompts = 1000
    config.completion = 0.0
    config.policy.start = 0.7
    config.optim.lr = 3e-3
    config.train.steps = 300
    return config
