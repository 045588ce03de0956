"""FMLM on OpenWebText: semigroup distillation of configs/owt/flm.py (arXiv 2602.16813v3).

python -m flm_jax.train --config=configs/owt/fmlm.py --workdir=runs/owt/fmlm \
    --config.objective.teacher=runs/owt/flm

Data and hardware are those of configs/owt/flm.py. On 16 TPU v5e chips it was compiled, not run: the
peak is 2.76 GiB a chip with model.remat=full (docs/planning.md). Duration and metrics are
unmeasured here. The paper's generative perplexity under GPT-2 large is 168.30 (entropy 5.17) in 1
step and 111.31 (5.26) in 4.
"""

from configs.owt.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.objective.teacher = "runs/owt_flm"
    config.train.steps = 100_000
    config.eval.sample_steps = 1
    return config
