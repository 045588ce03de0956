"""Duo, uniform-state diffusion (arXiv 2506.10892), on OpenWebText with data and sizes of the FLM.

python -m flm_jax.train --config=configs/owt/duo.py --workdir=runs/owt/duo

The curriculum takes the first half of the steps, at temperature 0.001 and gamma from -3.55 to
-1.85, as in the authors' script; signals are computed for V = 50,257.

Data and hardware are the same as in configs/owt/flm.py; the curriculum draws noise in R^V. Duration
and metrics are unmeasured.
"""

from configs.owt.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    choose(config, objective="uniform_diffusion")
    config.objective.most_signal = 0.9455
    config.objective.least_signal = 0.0493
    return config
