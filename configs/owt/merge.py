"""One map of FLM and residual on OpenWebText, second of two stages (arXiv 2602.16813).

python -m flm_jax.train --config=configs/owt/merge.py --workdir=runs/owt/merge \
    --config.objective.teacher=runs/owt/flm --config.objective.residual=runs/owt/residual

As released in February 2026: one row of 128 spans the interval from 0 to 1, and the loss is the
squared distance of the states. Data and hardware are the same as in configs/owt/flm.py. Duration
and metrics are unmeasured.
"""

from configs.owt.recipe import recipe, two_stage


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    return two_stage(recipe(arg), "merge")
