"""FMLM on OpenWebText: semigroup distillation of configs/owt/flm.py (arXiv 2602.16813v3).

python -m flm_jax.train --config=configs/owt/fmlm.py --workdir=runs/owt/fmlm \
    --config.objective.teacher=runs/owt/flm

The values are the released script's: a million steps of 128 rows, half of them on the diagonal and
2 over the interval from 0 to 1, b2 0.95; all noise is drawn anew in sampling. Data and hardware are
the same as in configs/owt/flm.py. On 16 TPU v5e chips it was compiled, not run, with
train.batch=512: the peak is 2.76 GiB a chip with model.remat=full (docs/guides/planning.md).
Duration and metrics are unmeasured here. The paper's generative perplexity under GPT-2 large is
168.30 (entropy 5.17) in 1 step and 111.31 (5.26) in 4.
"""

from configs.owt.recipe import distilled, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = distilled(recipe(arg), "semigroup")
    config.optim.b2 = 0.95
    config.sampler.gamma = 1.0
    config.train.batch = 128
    return config
