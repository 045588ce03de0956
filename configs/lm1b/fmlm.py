"""FMLM on LM1B: semigroup distillation of the FLM of configs/lm1b/flm.py (arXiv 2602.16813v3).

python -m flm_jax.train --config=configs/lm1b/fmlm.py --workdir=runs/lm1b/fmlm \
    --config.objective.teacher=runs/lm1b/flm

Data and hardware are those of configs/lm1b/flm.py. Duration and metrics are unmeasured here. The
paper's generative perplexity under GPT-2 large is 119.34 (entropy 4.16) in 1 step and 98.76 (4.21)
in 4.
"""

from configs.lm1b.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = recipe(arg)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.objective.teacher = "runs/lm1b_flm"
    config.train.steps = 100_000
    config.eval.sample_steps = 1
    return config
