"""FLM on a few two-word phrases with known probabilities: exactness at the smallest scale.

python -m flm_jax.train --config=configs/phrases/flm.py --workdir=runs/phrases/flm

Hardware: CPU. The duration is unmeasured. Expected: on `phrases2` and on `phrases4` 99.9% of 10,000
samples in 64 network calls are valid, at a total variation of 0.005 from the true distribution
(docs/results/tasks.md, "A flow and its map"); `phrases_shared` is unmeasured.
"""

from configs.phrases.recipe import recipe


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = recipe(arg or "phrases2")
    config.objective.name = "denoising"
    config.train.steps = 1500
    config.train.log_every = 500
    config.eval.every = 1000
    config.eval.sample_steps = 64
    return config
