"""FMLM on LM1B: semigroup distillation of the FLM of configs/lm1b/flm.py (arXiv 2602.16813v3).

python -m flm_jax.train --config=configs/lm1b/fmlm.py --workdir=runs/lm1b/fmlm \
    --config.objective.teacher=runs/lm1b/flm

The values are the released script's: a million steps of 512 rows, half of them on the diagonal and
8 over the interval from 0 to 1, b2 0.95; all noise is drawn anew in sampling. Data and hardware are
the same as in configs/lm1b/flm.py. Duration and metrics are unmeasured here. The paper's generative
perplexity under GPT-2 large is 119.34 (entropy 4.16) in 1 step and 98.76 (4.21) in 4.
"""

from configs.lm1b.recipe import distilled, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = distilled(recipe(arg), "semigroup")
    config.optim.b2 = 0.95
    config.sampler.gamma = 1.0
    return config
