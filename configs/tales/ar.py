"""AR model of the tales: the judge of the other models' texts, larger than they are.

python -m flm_jax.train --config=configs/tales/ar.py:runs/tales --workdir=runs/tales/ar

With 33,000 tokens a step, 2,500 steps read the tales five times; dropout keeps it from learning
them by heart. The data are prepared by launch/tales.sh. Hardware: as for the flow. Duration and
metrics: 89 s on an H200 beside the flow; 3.11 nats a token in training; held-out texts have a
perplexity of 28.6 (docs/results/tales.md).
"""

from configs.tales.recipe import judge, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default."""
    config = recipe(arg)
    judge(config)
    config.train.steps = 2500
    return config
