"""One map of FLM and residual on LM1B, second of two stages (arXiv 2602.16813).

python -m flm_jax.train --config=configs/lm1b/merge.py --workdir=runs/lm1b/merge \
    --config.objective.teacher=runs/lm1b/flm --config.objective.residual=runs/lm1b/residual

As released in February 2026: one row of 128 spans the interval from 0 to 1, and the loss is the
squared distance of the states. Data and hardware are the same as in configs/lm1b/flm.py. Duration
and metrics are unmeasured.
"""

from configs.lm1b.recipe import recipe, two_stage


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    return two_stage(recipe(arg), "merge")
