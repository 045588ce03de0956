"""MLFM (arXiv 2606.27617): SMDM's Diff-LLaMA 1028M adapted into a flow, by LoRA and AdaLN alone.

python -m flm_jax.train --config=configs/masked_flow/adapt.py --workdir=runs/mlfm_adapt

The base model is what `python -m flm_jax.convert --source=smdm` wrote to runs/smdm
(docs/methods/masked_flow.md); its sizes are read from there. The data in data/pretraining must be
prepared with its tokenizer. All values are the paper's; where its released configuration differs
(docs/methods/masked_flow.md has a table), loss and distribution of gamma follow that configuration.

Hardware: accelerators. Duration and metrics are unmeasured.
"""

from configs.masked_flow import recipe
from flm_jax.config import base_config, choose


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    config = base_config()
    recipe.adapt(config, base=f"{arg or 'runs'}/smdm")
    config.data.path = "data/pretraining"
    config.data.packing = "stream"
    config.data.prefix_crop = 0.01
    # The sizes of the base model, for `compile`; `train` reads them from the base model.
    choose(config, model="llama")
    config.model.vocab_size = 32000
    config.model.dim = 1792
    config.model.depth = 20
    config.model.heads = 14
    config.model.attention_softcap = 0.0
    config.model.logit_softcap = 0.0
    config.model.rope_dtype = "bfloat16"
    config.model.length = 1024
    config.model.dtype = "bfloat16"
    config.model.remat = "matmuls"
    config.model.scan_blocks = True
    config.model.loss_tile = 256
    config.optim.lr = 1e-4
    config.optim.warmup_steps = 3000
    config.optim.first_step = "rising"
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.999
    config.train.steps = 200_000
    config.train.batch = 512
    config.train.checkpoint_every = 1000
    config.eval.every = 5000
    config.eval.sample_steps = 128
    return config
