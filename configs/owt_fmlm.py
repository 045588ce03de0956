"""FMLM on OpenWebText: semigroup distillation of configs/owt_flm.py (arXiv 2602.16813v3).

python -m flm_jax.train --config=configs/owt_fmlm.py --workdir=runs/owt_fmlm \
    --config.objective.teacher=runs/owt_flm

Hardware as for the teacher. Unmeasured here; the paper's generative perplexity by GPT-2 large is
168.30 (5.17) in 1 step, 111.31 (5.26) in 4.
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` is the prepared folder, data/owt by default."""
    config = base_config()
    config.data.path = arg or "data/owt"
    config.data.packing = "wrap"
    config.data.prefetch = 16
    config.model.length = 1024
    config.model.dim = 768
    config.model.depth = 12
    config.model.heads = 12
    config.model.dropout = 0.1
    config.model.two_time = True
    config.model.dtype = "bfloat16"
    config.model.scan_blocks = True
    config.model.loss_tile = 128
    config.objective.name = "semigroup"
    config.objective.teacher = "runs/owt_flm"
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 2500
    config.train.steps = 100_000
    config.train.batch = 512
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.eval.every = 10_000
    config.eval.sample_steps = 1
    return config
