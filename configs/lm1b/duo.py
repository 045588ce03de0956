"""Duo, uniform-state diffusion (arXiv 2506.10892), on LM1B with the data and sizes of the FLM.

python -m flm_jax.train --config=configs/lm1b/duo.py --workdir=runs/lm1b/duo

The curriculum takes the first half of the steps, at temperature 0.001 and gamma from -3.5 to -1.75,
as in the authors' script; signals are computed for V = 30,522.

Data and hardware are the same as in configs/lm1b/flm.py; the curriculum draws noise in R^V.
Duration and metrics are unmeasured.
"""

from configs.lm1b.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = recipe(arg)
    choose(config, objective="uniform_diffusion")
    config.objective.most_signal = 0.9417
    config.objective.least_signal = 0.0487
    return config
