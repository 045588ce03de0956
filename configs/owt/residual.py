"""A residual beside the FLM on OpenWebText, first of two stages (arXiv 2602.16813, appendix).

python -m flm_jax.train --config=configs/owt/residual.py --workdir=runs/owt/residual \
    --config.objective.teacher=runs/owt/flm

As released in February 2026: 128 rows, of which one of 64 spans the interval from 0 to 1, and a
learned function weights the times. Data and hardware are the same as in configs/owt/flm.py.
Duration and metrics are unmeasured; configs/owt/merge.py distils FLM and residual into one map.
"""

from configs.owt.recipe import recipe, two_stage


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    return two_stage(recipe(arg), "residual")
