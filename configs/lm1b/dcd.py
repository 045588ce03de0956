"""Discrete consistency distillation of the Duo of configs/lm1b/duo.py (arXiv 2506.10892).

python -m flm_jax.train --config=configs/lm1b/dcd.py --workdir=runs/lm1b/dcd \
    --config.objective.teacher=runs/lm1b/duo

Rounds, spans, learning rate and average are the values of the authors' script for LM1B. Data and
hardware are the same as in configs/lm1b/flm.py. Duration and metrics are unmeasured here. arXiv
2609.15903 reports a generative perplexity under GPT-2 large of 1225 in one step.
"""

from configs.lm1b.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = recipe(arg)
    choose(config, objective="discrete_consistency")
    config.objective.teacher = "runs/lm1b/duo"
    config.objective.first_span = 1 / 32
    config.objective.round_steps = 5000
    config.optim.lr = 1e-4
    config.optim.warmup_steps = 500
    config.optim.ema_decay = 0.99
    config.train.steps = 35_000
    config.eval.sample_steps = 8
    return config
