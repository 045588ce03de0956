"""Ablations of the FLM: its cross entropy, what its network predicts, and its clock.

python -m flm_jax.evaluate --config=configs/comparisons/ablations.py:pydoc --workdir=runs/ablations
python -m flm_jax.evaluate --config=configs/comparisons/ablations.py:arithmetic1 --workdir=runs/sums

The data are the documentation of the running Python with a vocabulary of 8192, or sums of one
digit, whose validity is exact. All models have the same network, data and number of steps:

    CE            softmax and cross entropy, the decoding-error clock (an FLM)
    MSE           the denoiser as a plain vector of R^V, squared error
    velocity      the velocity as a plain vector of R^V, squared error
    CE_no_clock   as CE, times uniform in t in training and sampling
    CE_embedded   as CE, the clock of embedded states; of pydoc alone, as it differs where V > D

MSE and velocity have no softmax, and hence no likelihood.

Hardware: two CPU cores. The duration is unmeasured. Expected: on `arithmetic1`, in 64 network
calls, 26% of the samples of CE are valid, 18% of MSE, 13% of velocity and 15% of CE_no_clock; on
`pydoc` the perplexity under the judge is 1,170 for CE and 1,430 for CE_no_clock
(docs/results/tasks.md and docs/results/text.md, "Ablations of the objective").
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from flm_jax.config import choose

# model -> what differs from an FLM.
ABLATIONS = {
    "CE": {},
    "MSE": {"objective.prediction": "denoiser"},
    "velocity": {"objective.prediction": "velocity", "flow.noise": "onehot"},
    "CE_no_clock": {"flow.clock": "identity"},
    "CE_embedded": {"flow.clock": "embedded"},
}
# data -> sizes, learning rate, decay of the averaged parameters, rows, steps, calls to compare at.
TASKS = {
    "pydoc": dict(length=32, dim=128, depth=3, lr=1e-3, ema=0.99, batch=32, steps=600, calls=(32,)),
    "arithmetic1": dict(
        length=6, dim=64, depth=3, lr=2e-3, ema=0.998, batch=256, steps=2000, calls=(8, 64)
    ),
}


def _model(task: str):
    sizes = TASKS[task]
    config = recipe.model(sizes, sizes["steps"], sizes["lr"])
    if task == "pydoc":
        config.data.packing = "stream"
    else:
        config.data.task = task
    config.optim.ema_decay = sizes["ema"]
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.eval.sample_steps = 16
    return config


def _judged_on_text(config: ConfigDict) -> None:
    """Adds the corpus, and a judge of it, which takes as many steps as the models."""
    config.samples = 256
    config.batch_size = 64
    config.prepare = ConfigDict()
    config.prepare.source = "pydoc"
    config.prepare.path = ""
    config.prepare.tokenizer = "sentencepiece"
    config.prepare.vocab_size = 8192
    config.prepare.valid_fraction = 0.1
    config.judge = "judge"
    judge = _model("pydoc")
    choose(judge, model="causal", objective="autoregressive")
    config.models.judge = ConfigDict({"config": judge, "steps": (), "teacher": ""})


def get_config(arg: str = ""):
    """`arg` names the data: pydoc (default), arithmetic1."""
    task = arg or "pydoc"
    text = task == "pydoc"
    config = recipe.comparison(f"{task}: ablations of the flow language model")
    if text:
        _judged_on_text(config)
    for name, changes in ABLATIONS.items():
        if text or name != "CE_embedded":
            model = _model(task)
            model.update_from_flattened_dict(changes)
            entry = {"config": model, "steps": TASKS[task]["calls"], "teacher": ""}
            config.models[name] = ConfigDict(entry)
    return config
