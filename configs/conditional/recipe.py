"""What the conditional models share: questions and answers, sizes, optimizer, steps.

Each question is a topic, and each of its eight words a right answer; configs/conditional/flm.py
says how the file is written. The sizes are chosen for a part of one CPU core.
"""

from flm_jax.config import base_config

FOLDER = "runs/conditional"
FLOW_STEPS, MAP_STEPS = 3500, 1500
GUIDANCE = 2.0


def recipe(folder: str):
    """`folder` is the folder of the runs; the exchanges are its file `topics.jsonl`."""
    config = base_config()
    config.data.chat = ((f"{folder or FOLDER}/topics.jsonl", 1.0),)
    config.data.tokenizer = "bytes"
    config.model.length = 30
    config.model.dim = 64
    config.model.depth = 2
    config.model.heads = 4
    config.optim.name = "muon"
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.998
    config.train.batch = 64
    config.train.log_every = 250
    config.train.checkpoint_every = 500
    config.eval.every = 0
    config.eval.samples = 4
    config.eval.sample_steps = 8
    return config


def flow(folder: str):
    """A flow of answers beside clean questions, or a map of it; files set the objective's own."""
    config = recipe(folder)
    config.model.posterior_input = True
    config.objective.context = 0.5
    config.objective.context_dropout = 0.1
    return config
