"""AR, an autoregressive transformer, on the phrase tasks.

python -m flm_jax.train --config=configs/phrases/ar.py --workdir=runs/phrases/ar

Hardware: CPU. Duration and metrics are unmeasured.
"""

from configs.phrases.recipe import baseline
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = baseline(arg or "phrases2")
    choose(config, model="causal", objective="autoregressive")
    return config
