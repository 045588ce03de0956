"""FMLM by the Eulerian route on OpenWebText, as Discrete Flow Maps report it (arXiv 2604.09784).

python -m flm_jax.train --config=configs/owt/fmlm_eulerian.py --workdir=runs/owt/fmlm_eulerian \
    --config.objective.teacher=runs/owt/flm

The route alone is that paper's; all other figures are those of configs/owt/fmlm.py, as their own
are not at hand. Data and hardware are those of configs/owt/flm.py. Duration and metrics are
unmeasured here.
"""

from configs.owt.fmlm import get_config as semigroup
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = semigroup(arg)
    choose(config, objective="eulerian")
    return config
