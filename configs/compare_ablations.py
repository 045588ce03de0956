"""What an FLM owes to its parts: cross entropy, denoiser, clock.

python -m flm_jax.evaluate --config=configs/compare_ablations.py:pydoc --workdir=runs/ablations
python -m flm_jax.evaluate --config=configs/compare_ablations.py:arithmetic1 --workdir=runs/sums

The documentation of the running Python at a vocabulary of 8192, and sums of one digit, whose
validity is exact. All models have the same network, data and steps:

    CE            softmax and cross entropy, the decoding-error clock (an FLM)
    MSE           the denoiser as a plain vector of R^V, squared error
    velocity      the velocity as a plain vector of R^V, squared error
    CE_no_clock   as CE, times uniform in t in training and sampling
    CE_embedded   as CE, the clock of embedded states; of pydoc alone, as it differs where V > D

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
    "CE_embedded": {"clock": "embedded"},
}
TASKS = {
    "pydoc": dict(length=32, dim=128, lr=1e-3, ema=0.99, batch=32, steps=600, calls=(32,)),
    "arithmetic1": dict(length=6, dim=64, lr=2e-3, ema=0.998, batch=256, steps=2000, calls=(8, 64)),
}


def _model(task: str):
    sizes = TASKS[task]
    config = base_config()
    if task == "pydoc":
        config.data.packing = "stream"
    else:
        config.data.task = task
    config.model.length = sizes["length"]
    config.model.dim = sizes["dim"]
    config.model.depth = 3
    config.model.heads = 4
    config.optim.lr = sizes["lr"]
    config.optim.schedule = "cosine"
    config.optim.ema_decay = sizes["ema"]
    config.train.steps = sizes["steps"]
    config.train.batch = sizes["batch"]
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.eval.every = 0
    config.eval.sample_steps = 16
    return config


def _judged_on_text(config: ConfigDict) -> None:
    """The corpus, and a judge of it, which takes as many steps as the models."""
    config.prepare = ConfigDict()
    config.prepare.source = "pydoc"
    config.prepare.path = ""
    config.prepare.tokenizer = "sentencepiece"
    config.prepare.vocab_size = 8192
    config.prepare.valid_fraction = 0.1
    config.judge = "judge"
    judge = _model("pydoc")
    judge.model.name = "causal"
    judge.objective.name = "autoregressive"
    config.models.judge = ConfigDict({"config": judge, "steps": (), "teacher": ""})


def get_config(arg: str = ""):
    """`arg` names the data: pydoc (default), arithmetic1."""
    task = arg or "pydoc"
    text = task == "pydoc"
    config = ConfigDict()
    config.title = f"{task}: ablations of the flow language model"
    config.samples = 256 if text else 10_000
    config.batch_size = 64 if text else 2500
    config.seed = 0
    config.models = ConfigDict()
    if text:
        _judged_on_text(config)
    for name, changes in ABLATIONS.items():
        if text or name != "CE_embedded":
            model = _model(task)
            model.objective.update(changes)
            entry = {"config": model, "steps": TASKS[task]["calls"], "teacher": ""}
            config.models[name] = ConfigDict(entry)
    return config
