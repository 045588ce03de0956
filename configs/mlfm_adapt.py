"""MLFM (2606.27617): SMDM's Diff-LLaMA 1028M adapted into a flow, by LoRA and AdaLN alone.

python -m flm_jax.train --config=configs/mlfm_adapt.py --workdir=runs/mlfm_adapt

The base is what `convert --source=smdm` wrote to runs/smdm, whose sizes are taken from there; the
data must be prepared with its tokenizer. Adapters, gamma and optimizer are the paper's; number of
steps, batch and length are not from there. Hardware: accelerators; duration and metrics unmeasured.
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    runs = arg or "runs"
    config = base_config()
    config.objective.name = "masked_bridge"
    config.adapters.base = f"{runs}/smdm"
    config.data.path = "data/pretraining"
    config.data.packing = "stream"
    # The base's sizes, for `compile`; `train` reads them from the base.
    config.model.name = "llama"
    config.model.vocab_size = 32000
    config.model.dim = 1792
    config.model.depth = 20
    config.model.heads = 14
    config.model.attention_softcap = 0.0
    config.model.logit_softcap = 0.0
    config.model.length = 2048
    config.model.dtype = "bfloat16"
    config.model.remat = "matmuls"
    config.model.scan_blocks = True
    config.model.loss_tile = 256
    config.optim.lr = 1e-4
    config.optim.warmup_steps = 3000
    config.optim.schedule = "cosine"
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.01
    config.optim.ema_decay = 0.999
    config.train.steps = 50_000
    config.train.batch = 256
    config.train.checkpoint_every = 1000
    config.eval.every = 5000
    config.eval.sample_steps = 128
    return config
