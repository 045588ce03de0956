"""FMLM by the Eulerian route on LM1B, as Discrete Flow Maps report it (arXiv 2604.09784).

python -m flm_jax.train --config=configs/lm1b/fmlm_eulerian.py --workdir=runs/lm1b/fmlm_eulerian \
    --config.objective.teacher=runs/lm1b/flm

Only the route is that paper's: its other values are not at hand, so all others are the same as in
configs/lm1b/fmlm.py. Data and hardware are the same as in configs/lm1b/flm.py. Duration and metrics
are unmeasured here.
"""

from configs.lm1b.fmlm import get_config as semigroup
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = semigroup(arg)
    choose(config, objective="eulerian")
    return config
