"""Discrete consistency distillation of the Duo of configs/owt/duo.py (arXiv 2506.10892).

python -m flm_jax.train --config=configs/owt/dcd.py --workdir=runs/owt/dcd \
    --config.objective.teacher=runs/owt/duo

Rounds, spans, batch, learning rate and average are the values of the authors' script for
OpenWebText. Data and hardware are the same as in configs/owt/flm.py. Duration and metrics are
unmeasured here. arXiv 2609.15903 reports generative perplexities under GPT-2 large of 5743, 891 and
251 in 1, 2 and 4 steps.
"""

from configs.owt.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    choose(config, objective="discrete_consistency")
    config.objective.teacher = "runs/owt/duo"
    config.optim.lr = 6e-5
    config.optim.warmup_steps = 500
    config.optim.ema_decay = 0.999
    config.train.steps = 80_000
    config.train.batch = 128
    config.eval.sample_steps = 8
    return config
