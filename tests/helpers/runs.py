"""Configurations of runs that take seconds, and what is left of such a run.

Imported by a configuration file before processes join: nothing here may start JAX's backend."""

import jax
import numpy as np

from flm_jax.build.load import load_model
from flm_jax.checkpoints.workdir import Checkpoints
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.distributed import sharding
from flm_jax.training.program import assemble
from flm_jax.training.trainer import train_run


def three_step_config(goal):
    config = base_config()
    config.data.task = "phrases2"
    config.model.update({"length": 2, "dim": 16, "depth": 1, "heads": 2, "cond_dim": 16})
    choose(config, model="causal" if goal == "autoregressive" else "dit", objective=goal)
    config.train.update({"steps": 3, "batch": 8, "log_every": 3})
    config.eval.update({"every": 0, "sample_steps": 2, "samples": 1, "batches": 1})
    return check(config)


def text_config(path):
    config = tiny_config()
    config.data.task, config.data.path, config.model.length = "", path, 16
    return config


def baseline_config(kind, **values):
    config = base_config()
    config.data.task, config.data.task_size = "phrases2", 4096
    config.model.length, config.model.dim, config.model.depth = 2, 32, 2
    config.model.heads, config.model.cond_dim = 2, 16
    choose(config, model="causal" if kind == "autoregressive" else "dit", objective=kind)
    config.optim.lr, config.optim.warmup_steps, config.optim.ema_decay = 3e-3, 20, 0.98
    config.train.steps, config.train.batch, config.train.checkpoint_every = 200, 128, 160
    config.eval.every, config.eval.sample_steps, config.train.log_every = 0, 2, 200
    config.mesh.data, config.mesh.fsdp = 1, 8  # the tests run on 8 devices
    return changed(config, values)


def changed(config, values):
    """Sets keys by their dotted names; names of groups first, as on a command line."""
    for key, value in values.items():
        if key.endswith(".name") and key.count(".") == 1:
            choose(config, **{key.removesuffix(".name"): value})
    config.update_from_flattened_dict(values)
    return config


def tiny_config():
    config = base_config()
    config.data.task = "phrases2"
    config.data.task_size = 512
    config.model.length = 2
    config.model.dim = 16
    config.model.depth = 1
    config.model.heads = 2
    config.model.cond_dim = 16
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 2
    config.train.steps = 8
    config.train.batch = 16
    config.train.checkpoint_every = 4
    config.train.log_every = 2
    config.eval.sample_steps = 2
    config.mesh.data = 1
    config.mesh.fsdp = 8  # the tests run on 8 devices
    return config


def distilling(config, objective, teacher):
    """A configuration of a flow turned into that of a map of it, in place."""
    choose(config, objective=objective)
    config.objective.teacher, config.model.two_time = str(teacher), True
    return config


def run(config, workdir):
    return train_run(check(config), str(workdir))


def restored(config, teacher, workdir):
    """The last train state of a run of two networks that learn from a flow, over 4 tokens."""
    config = check(config)
    config["model"]["vocab_size"] = 4
    mesh = sharding.make_mesh(sharding.MeshConfig(**config["mesh"]))
    model = load_model(teacher, mesh)
    program = assemble(config, mesh, (model.net, model.params))
    checkpoints = Checkpoints(workdir)
    state, _ = checkpoints.restore(program.initial_state(model.params))
    checkpoints.close()
    return jax.tree.map(np.asarray, state)


def final_params(workdir):
    return jax.tree.map(np.asarray, load_model(workdir).params)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
