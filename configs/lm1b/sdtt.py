"""SDTT (arXiv 2410.21035), self-distillation through time of the MDLM of configs/lm1b/mdlm.py.

python -m flm_jax.train --config=configs/lm1b/sdtt.py --workdir=runs/lm1b/sdtt \
    --config.objective.teacher=runs/lm1b/mdlm

Seven rounds of 10,000 steps, from steps of 1/1024 of the time to steps of 1/16, as published. Data
and hardware are the same as in configs/lm1b/flm.py. Duration and metrics are unmeasured here. arXiv
2609.15903 reports a generative perplexity under GPT-2 large of 1429 in one step.
"""

from configs.lm1b.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = recipe(arg)
    choose(config, objective="through_time")
    config.objective.teacher = "runs/lm1b/mdlm"
    config.optim.lr = 6e-5
    config.optim.warmup_steps = 500
    config.train.steps = 70_000
    config.train.batch = 128
    config.eval.sample_steps = 32
    return config
