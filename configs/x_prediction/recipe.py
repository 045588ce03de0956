"""What the x-prediction flows of sums and of Python functions share (arXiv 2606.29066)."""

from configs.masked_flow.recipe import small_base
from flm_jax.config import choose, policy_config


def base():
    """A small masked diffusion model, of which files set the task, length, depth and steps."""
    config = small_base()
    config.model.dim = 96
    return config


def align(config, runs: str):
    """Changes `config`, of the base model in the folder `runs`, into its alignment."""
    choose(config, objective="alignment")
    config.objective.teacher = f"{runs}/base"
    config.data.generated = f"{runs}/own"
    config.optim.warmup_steps = 20
    config.train.steps = 400
    config.train.log_every = 50
    config.train.checkpoint_every = 200


def policy(runs: str):
    """A policy of step sizes for the aligned model in the folder `runs`."""
    config = policy_config()
    config.model = f"{runs}/align"
    config.calls = (2, 4)
    return config
