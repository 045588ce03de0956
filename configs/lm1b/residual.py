"""A residual beside the FLM on LM1B, first of two stages (arXiv 2602.16813, appendix).

python -m flm_jax.train --config=configs/lm1b/residual.py --workdir=runs/lm1b/residual \
    --config.objective.teacher=runs/lm1b/flm

As released in February 2026: one row of 64 spans the interval from 0 to 1, and a learned function
weights the times. Data and hardware are the same as in configs/lm1b/flm.py. Duration and metrics
are unmeasured; configs/lm1b/merge.py distils FLM and residual into one map.
"""

from configs.lm1b.recipe import recipe, two_stage


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    return two_stage(recipe(arg), "residual")
