"""AR, an autoregressive transformer, on OpenWebText with the data and sizes of the FLM.

python -m flm_jax.train --config=configs/owt/ar.py --workdir=runs/owt/ar

Data and hardware are the same as in configs/owt/flm.py. Duration and metrics are unmeasured.
"""

from configs.owt.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    choose(config, model="causal", objective="autoregressive")
    return config
