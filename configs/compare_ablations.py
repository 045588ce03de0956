"""What an FLM owes to its parts: cross entropy, denoiser, clock; at a vocabulary of 8192.

python -m flm_jax.evaluate --config=configs/compare_ablations.py --workdir=runs/ablations

The documentation of the running Python; 66 minutes on one busy CPU core. All models have the same
network, data and steps:

    CE            softmax and cross entropy, the decoding-error clock (an FLM)
    MSE           the denoiser as a plain vector of R^V, squared error
    velocity      the velocity as a plain vector of R^V, squared error
    CE_no_clock   as CE, times uniform in t in training and sampling

MSE and velocity have no softmax, and hence no likelihood.
"""

from ml_collections import ConfigDict

from flm_jax.defaults import base_config

# model -> what differs from an FLM.
ABLATIONS = {
    "CE": {},
    "MSE": {"prediction": "denoiser"},
    "velocity": {"prediction": "velocity", "noise": "onehot"},
    "CE_no_clock": {"clock": "identity"},
}
STEPS, JUDGE_STEPS = 600, 600


def _model(steps: int):
    config = base_config()
    config.data.packing = "stream"
    config.model.length = 32
    config.model.dim = 128
    config.model.depth = 3
    config.model.heads = 4
    config.optim.lr = 1e-3
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = steps
    config.train.batch = 32
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.eval.every = 0
    config.eval.sample_steps = 16
    return config


def get_config(arg: str = ""):
    """`arg` is unused."""
    del arg
    config = ConfigDict()
    config.title = "Ablations of the flow language model, vocabulary 8192"
    config.prepare = ConfigDict()
    config.prepare.source = "pydoc"
    config.prepare.path = ""
    config.prepare.tokenizer = "sentencepiece"
    config.prepare.vocab_size = 8192
    config.prepare.valid_fraction = 0.1
    config.judge = "judge"
    config.samples = 256
    config.batch_size = 64
    config.seed = 0
    config.models = ConfigDict()
    judge = _model(JUDGE_STEPS)
    judge.model.name = "causal"
    judge.objective.name = "autoregressive"
    config.models.judge = ConfigDict({"config": judge, "steps": (), "teacher": ""})
    for name, changes in ABLATIONS.items():
        model = _model(STEPS)
        model.objective.update(changes)
        config.models[name] = ConfigDict({"config": model, "steps": (32,), "teacher": ""})
    return config
