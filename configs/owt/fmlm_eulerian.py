"""FMLM by the Eulerian route on OpenWebText, as Discrete Flow Maps report it (arXiv 2604.09784).

python -m flm_jax.train --config=configs/owt/fmlm_eulerian.py --workdir=runs/owt/fmlm_eulerian \
    --config.objective.teacher=runs/owt/flm

Only the route is that paper's: its other values are not at hand, so all others are the same as in
configs/owt/fmlm.py. Data and hardware are the same as in configs/owt/flm.py. Duration and metrics
are unmeasured here.
"""

from configs.owt.fmlm import get_config as semigroup
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = semigroup(arg)
    choose(config, objective="eulerian")
    return config
