"""The map that ships: the FMLM of the tales finished by distribution matching (arXiv 2609.40235).

python -m flm_jax.train --config=configs/tales/dmd.py:runs/tales --workdir=runs/tales/dmd

Each step trains the auxiliary denoiser twice and the map once, each on a third of the batch. More
than one call is sampled with --gamma=0.5. The data are prepared by launch/tales.sh. Hardware: as
for the flow. Duration and metrics: the model that ships had 700 updates at a teacher temperature
of 1 in 109 s on an H200; judge perplexity 594 in one call, 255 in four (docs/results/tales.md).
From there 3,650 as here, in 390 s beside another run, reach 322 and 152, with fewer distinct pairs.
"""

from configs.tales.recipe import flow, match


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default, with `flm` and `fmlm` in it."""
    folder = arg or "runs/tales"
    config = flow(folder)
    match(config)
    config.objective.teacher = f"{folder}/flm"
    config.objective.start = f"{folder}/fmlm"
    config.optim.ema_decay = 0.995
    config.train.steps = 3000
    config.train.batch = 3 * 256
    config.train.checkpoint_every = 500
    config.sampler.bigram = 1.0
    config.sampler.trigram = 2.0
    config.eval.sample_steps = 1
    return config
