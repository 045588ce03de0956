"""Recipe common to the models of the tales: data, sizes, optimizer and steps.

launch/tales.sh prepares the data and trains all of them. A model has at most 7.4 million
parameters, so that its weights in bfloat16 take less than 15 MB. The batches are sized for a GPU;
without one the launcher sets smaller batches and float32.
"""

from flm_jax.config import base_config, choose


def recipe(folder: str = ""):
    """`folder` holds the runs, runs/tales by default; the prepared data lie in `data` there."""
    config = base_config()
    config.data.path = f"{folder or 'runs/tales'}/data"
    config.data.packing = "stream"
    config.data.prefetch = 8
    config.model.length = 64
    config.model.dim = 256
    config.model.depth = 5
    config.model.heads = 4
    config.model.dtype = "bfloat16"
    config.optim.name = "muon"
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 50
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.998
    config.train.steps = 12_000
    config.train.batch = 512
    config.train.log_every = 100
    config.train.checkpoint_every = 1000
    config.train.keep_checkpoints = 1
    # All is measured afterwards, by launch/tales_measure.sh.
    config.eval.every = 0
    config.eval.batches = 0
    config.eval.samples = 0
    config.eval.sample_steps = 32
    return config


def flow(folder: str = ""):
    """Settings of the flow and its maps: posterior input, and clean context in half of the rows."""
    config = recipe(folder)
    config.model.posterior_input = True
    config.objective.context = 0.5
    return config


def match(config):
    """Turns a flow's configuration into distribution matching of its map (arXiv 2609.40235)."""
    config.model.two_time = True
    choose(config, objective="distribution_matching")
    config.objective.auxiliary_updates = 2
    config.objective.auxiliary_lr = 1e-3
    config.objective.auxiliary_lead = 50
    # The flow at 1 is too diffuse: its texts have .1 nats of entropy more than the data's.
    config.objective.teacher_temperature = 0.8
    config.objective.from_noise = 0.5
    config.objective.row_weighting = "distance"
    config.optim.lr = 5e-4
    config.sampler.gamma = 0.5


def judge(config):
    """Turns a configuration into that of the larger AR model that judges the others."""
    choose(config, model="causal")
    config.model.dim = 384
    config.model.depth = 6
    config.model.heads = 6
    config.model.dropout = 0.1
    choose(config, objective="autoregressive")
    config.optim.lr = 2e-3
