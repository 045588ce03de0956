"""Small models that the comparisons train, and the number of samples that they draw."""

from ml_collections import ConfigDict

from flm_jax.config import base_config, choose


def model(sizes: dict, steps: int, lr: float):
    """A small FLM, of which the comparisons set the data and whatever differs.

    Args:
      sizes: dict with length, dim, depth and batch; other keys are ignored.
      steps: optimizer steps.
      lr: peak learning rate.
    """
    config = base_config()
    config.model.length = sizes["length"]
    config.model.dim = sizes["dim"]
    config.model.depth = sizes["depth"]
    config.model.heads = 4
    config.optim.lr = lr
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.998
    config.train.steps = steps
    config.train.batch = sizes["batch"]
    config.train.log_every = 500
    config.train.checkpoint_every = 1000
    config.eval.every = 0
    config.eval.sample_steps = 8
    return config


# Masked diffusion sampled by ReMDM, as (label, settings); the published loop, and the confidences.
REMASKED = {
    "ReMDM_loop": {"sampler": "remasking", "strategy": "loop"},
    "ReMDM_conf": {"sampler": "remasking", "strategy": "conf"},
}


def distilled(config: ConfigDict, objective: str):
    """Turns a small model into its distillation by five rounds, from 1/32 of the time to 1/2.

    Args:
      config: config of the small model, changed in place; its steps are divided among the rounds.
      objective: discrete_consistency or through_time.
    """
    choose(config, objective=objective)
    config.objective.first_span = 1 / 32
    config.objective.round_steps = config.train.steps // 5
    config.optim.lr = 1e-3
    return config


def comparison(title: str):
    """A comparison without models as yet; 10,000 samples are drawn of each."""
    config = ConfigDict()
    config.title = title
    config.samples = 10_000
    config.batch_size = 2500
    config.seed = 0
    config.models = ConfigDict()
    return config


def only(config: ConfigDict, names: list[str]):
    """A comparison with the models of these names and its judge alone; with all for no names."""
    if unknown := set(names) - set(config.models):
        raise ValueError(f"no models {sorted(unknown)}; there are {sorted(config.models)}")
    for name in list(config.models):
        if names and name not in (*names, config.get("judge")):
            del config.models[name]
    return config
