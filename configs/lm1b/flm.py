"""FLM on LM1B by the recipe of arXiv 2602.16813v3: 139 M parameters, 128 tokens.

python -m flm_jax.prepare_data --published=lm1b --out=data/lm1b
python -m flm_jax.train --config=configs/lm1b/flm.py --workdir=runs/lm1b/flm

A million steps, as in the paper; the released script goes on to 1.5 million.

Hardware: accelerators, with 32 sequences of the global batch of 512 at a time on a device of 16 GB;
train.microbatches divides the batch further. Duration and metrics are unmeasured here. The paper's
generative perplexity under GPT-2 large is 96.91 (entropy 4.29) in 1024 steps.
"""

from configs.lm1b.recipe import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = recipe(arg)
    config.objective.name = "denoising"
    return config
