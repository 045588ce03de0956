"""FMLM distilled from the FLM of configs/quickstart/flm.py: step 3 of launch/quickstart.sh.

python -m flm_jax.train --config=configs/quickstart/fmlm.py --workdir=runs/quickstart/fmlm

Hardware: two CPU cores. Duration: the whole quickstart takes 9.9 minutes after installation.
Expected: the unigram entropy is 3.853 nats in 1 network call and 3.898 in 2 (that of the data is
3.592), and the bound on -ln p is 5.57 nats/token (docs/getting_started.md, "The quickstart").
"""

from configs.quickstart.recipe import flow
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the quickstart, runs/quickstart by default."""
    folder = arg or "runs/quickstart"
    config = flow(folder)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.objective.teacher = f"{folder}/flm"
    config.train.steps = 200
    config.eval.every = 100
    config.eval.sample_steps = 1
    return config
