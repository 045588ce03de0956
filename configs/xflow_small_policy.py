"""A policy of step sizes for the small aligned model of sums; CPU.

python -m flm_jax.train_policy --config=configs/xflow_small_policy.py --workdir=runs/xflow/policy
"""

from flm_jax.defaults import policy_config


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/xflow by default."""
    config = policy_config()
    config.model = f"{arg or 'runs/xflow'}/align"
    config.calls = (2, 4)
    return config
