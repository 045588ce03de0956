"""The recipe that all LM1B configurations share (arXiv 2602.16813v3): data, sizes, steps.

configs/lm1b/flm.py says how to prepare the data.
"""

from flm_jax.config import base_config, choose


def recipe(path: str = ""):
    """`path` is the folder of prepared data, data/lm1b by default."""
    config = base_config()
    config.data.path = path or "data/lm1b"
    config.data.packing = "wrap"
    config.data.group = 1000
    config.data.prefetch = 16
    config.model.length = 128
    config.model.dim = 768
    config.model.depth = 12
    config.model.heads = 12
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.attention = "auto"  # kernels of TPUs and GPUs, which hold no scores
    config.model.scan_blocks = True
    config.model.loss_tile = 32
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 2500
    config.train.steps = 1_000_000
    config.train.batch = 512
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.eval.every = 10_000
    config.eval.sample_steps = 128
    return config


def distilled(config, objective: str):
    """Turns the recipe of the FLM into one of its distillation, in place, and returns it."""
    config.model.two_time = True
    choose(config, objective=objective)
    config.objective.teacher = "runs/lm1b/flm"
    config.eval.sample_steps = 1
    return config


def two_stage(config, objective: str):
    """The same for a stage of the release of February 2026: residual, or merge."""
    distilled(config, objective)
    if objective == "merge":
        config.objective.residual = "runs/lm1b/residual"
        return config
    config.objective.weighting = "learned"
    config.eval.batches = config.eval.samples = 0  # alone it is no distribution
    return config
