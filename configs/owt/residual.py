"""A residual beside the FLM on OpenWebText, first of two stages (arXiv 2602.16813, appendix).

python -m flm_jax.train --config=configs/owt/residual.py --workdir=runs/owt/residual \
    --config.objective.teacher=runs/owt/flm

As released in February 2026: 128 rows, of which one of 64 is the whole interval, times weighted by
a learned function. Data and hardware are those of configs/owt/flm.py. Duration and metrics are
unmeasured; configs/owt/merge.py makes a flow map of it.
"""

from configs.owt.recipe import recipe, two_stage


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    return two_stage(recipe(arg), "residual")
