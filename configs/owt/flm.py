"""FLM on OpenWebText by the recipe of arXiv 2602.16813v3: 170 M parameters, 1024 tokens.

python -m flm_jax.prepare_data --published=openwebtext --out=data/owt
python -m flm_jax.train --config=configs/owt/flm.py --workdir=runs/owt/flm

A million steps, as in the paper; the released script goes on to 1.5 million.

Hardware: accelerators. It was compiled, not run, for 16 TPU v5e chips of 16 GB, each with 32
sequences of the global batch of 512: the peak is 2.82 GiB a chip with model.remat=full; without
rematerialisation up to 22 sequences fit (docs/guides/planning.md). train.microbatches divides the
batch further. Duration and metrics are unmeasured here. The paper's generative perplexity under
GPT-2 large is 62.23 (entropy 5.33) in 1024 steps.
"""

from configs.owt.recipe import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    config.objective.name = "denoising"
    return config
