"""AR, an autoregressive transformer, with the data, sizes and steps of the quickstart.

python -m flm_jax.train --config=configs/quickstart/ar.py --workdir=runs/quickstart/ar

The data are prepared as in configs/quickstart/flm.py. Hardware: two CPU cores. Duration and metrics
are unmeasured.
"""

from configs.quickstart.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the quickstart, runs/quickstart by default."""
    config = recipe(arg or "runs/quickstart")
    choose(config, model="causal", objective="autoregressive")
    return config
