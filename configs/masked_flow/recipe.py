"""What the configurations of masked flows (MLFM, arXiv 2606.27617) share, published and small."""

from flm_jax.config import base_config, choose


def small_base():
    """A small masked diffusion model, of which files set the task, the sizes and the steps."""
    config = base_config()
    choose(config, model="llama", objective="masked_diffusion")
    config.model.heads = 4
    config.model.mlp_ratio = 3
    config.model.attention_softcap = 0.0
    config.model.logit_softcap = 0.0
    config.optim.lr = 2e-3
    config.optim.warmup_steps = 200
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.batch = 128
    config.train.log_every = 200
    config.train.checkpoint_every = 1000
    config.eval.every = 0
    return config


def adapt(config, base: str):
    """Changes `config` into an adaptation of the model whose workdir is `base`."""
    choose(config, objective="masked_flow")
    config.adapters.base = base
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.01


def fine_tune(config, start: str):
    """Changes `config`, an adaptation, into fine-tuning of the adapters of the workdir `start`.

    As the authors' code has it, the base is trained with them. The law of gamma follows answers
    that are hidden all but entirely, from the curve of the adaptation on.
    """
    config.adapters.start = start
    config.adapters.base_lr = 1e-5
    config.adapters.base_weight_decay = 0.1
    config.flow.law.learnt = "empirical"
    config.flow.law.normal = 0.0
    config.flow.law.bins = 134
    config.flow.law.decay = 0.98
    config.flow.law.knot_rate = 0.05
    config.flow.law.ratio_low = 0.95
    config.flow.law.least_r2 = 0.0
    config.objective.embedding_weight = 10.0
    config.objective.reduction = "inverse_length"
    config.objective.hide_special = True
    config.objective.whole = 0.5


def distil(config, flow: str):
    """Changes `config`, fine-tuning, into the distillation of the masked flow in workdir `flow`.

    The map trains adapters alone, which start from the flow's; its base is the flow's, unchanged.
    """
    choose(config, objective="masked_flow_map")
    config.adapters.base = flow
    config.adapters.start = ""
    config.adapters.base_lr = 0.0
    config.adapters.two_time = True
    config.flow.redraw = False
    config.objective.context_guidance = 2.0
    # Answers are asked for as a whole; some context is known where a map fills gaps.
    config.objective.whole = 0.8


def match(config, flow: str):
    """Changes `config`, fine-tuning, into distribution matching of the masked flow in `flow`.

    The student starts from that flow; config.adapters.start names a flow map of it to start from.
    """
    distil(config, flow)
    choose(config, objective="masked_distribution_matching")
    config.objective.from_noise = 0.5
    # An answer is noised anew before every further call, as it was in training.
    config.sampler.gamma = 1.0
