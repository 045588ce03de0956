"""Tiny runs of masked diffusion on a task, of its adaptation to a masked flow, and of its maps."""

import jax
import numpy as np

from flm_jax.build.load import load_model
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.training.trainer import train_run
from helpers.runs import changed


def tiny(**values):
    config = base_config()
    choose(config, model="llama", objective="masked_diffusion")
    config.data.task, config.data.task_size = "phrases2", 4096
    config.model.length, config.model.dim, config.model.depth = 2, 32, 1
    config.model.heads, config.model.attention_softcap, config.model.logit_softcap = 2, 0.0, 0.0
    config.optim.lr, config.optim.warmup_steps, config.optim.ema_decay = 3e-3, 5, 0.98
    config.train.steps, config.train.batch, config.train.checkpoint_every = 20, 64, 20
    config.eval.every, config.eval.sample_steps, config.train.log_every = 0, 2, 100
    config.mesh.data, config.mesh.fsdp = 1, 8  # the tests run on 8 devices
    config.adapters.rank, config.adapters.head_rank, config.adapters.cond_dim = 4, 4, 16
    if values.get("objective.name") == "masked_flow":
        values = {"flow.law.refit_every": 8} | values
    return changed(config, values)


def run(config, workdir):
    assert train_run(check(config), str(workdir)) == 0
    return load_model(workdir)


def adapt(base, **values):
    more = {"adapters.base": str(base), "objective.name": "masked_flow", "train.steps": 24}
    return tiny(**(more | {"train.checkpoint_every": 12} | values))


def distil(flow, **values):
    more = {"adapters.base": str(flow), "adapters.two_time": True, "flow.redraw": False}
    more |= {"objective.name": "masked_flow_map", "objective.context_guidance": 1.0}
    more |= {"optim.warmup_steps": 1}
    return tiny(**(more | {"train.steps": 4, "train.checkpoint_every": 2} | values))


def leaves(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]
