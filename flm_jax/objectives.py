"""Clock and objective of plain flows: the part of `build` that knows their ablations."""

from collections.abc import Callable, Iterable
from typing import Any

from flm_jax.flows.clocks import Clock, decoding_clock, identity_clock
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss
from flm_jax.losses.regression import PREDICTIONS, RegressionConfig, regression_loss
from flm_jax.routes import context_config
from flm_jax.training.step import Objective
from flm_jax.types import Network, require, unknown_name

Config = dict[str, Any]


def _choice(kind: str, got: str, valid: Iterable[str]) -> str:
    if got not in valid:
        raise unknown_name(kind, got, valid)
    return got


# (V, D) -> the clock.
CLOCKS: dict[str, Callable[[int, int], Clock]] = {
    "decoding": lambda vocab_size, dim: decoding_clock(vocab_size),
    "embedded": decoding_clock,
    "identity": lambda vocab_size, dim: identity_clock(),
}


def clock(config: Config, vocab_size: int) -> Clock:
    """The clock of a configuration; a workdir's may be older than the key."""
    name = config["objective"].get("clock", "decoding")
    make = CLOCKS[_choice("config.objective.clock", name, CLOCKS)]
    return make(vocab_size, config["model"]["dim"])


def prediction(config: Config) -> str:
    """What the network's output means; a workdir's configuration may be older than the key."""
    given = config["objective"].get("prediction", "probabilities")
    return _choice("config.objective.prediction", given, PREDICTIONS)


def denoising(config: Config, net: Network, clock: Clock, teacher: Network | None) -> Objective:
    """The objective of a plain flow: cross entropy, or a squared error of any prediction."""
    del teacher
    given, kind = config["objective"], prediction(config)
    form = _choice("config.objective.form", given["form"], ("default", "ce", "mse"))
    require(
        kind == "probabilities" or form != "ce",
        f"config.objective.prediction {kind} is no distribution, so that there is no cross "
        "entropy; set config.objective.form = 'mse'.",
    )
    require(
        kind == "probabilities" or not net.two_time,
        f"config.objective.prediction {kind} has one time; set config.model.two_time = False.",
    )
    require(
        kind != "velocity" or given["noise"] == "onehot",
        "config.objective.prediction velocity needs the noise in R^V; set "
        "config.objective.noise = 'onehot'.",
    )
    require(
        not net.self_conditioned or (kind == "probabilities" and form != "mse"),
        "config.model.self_conditioning goes with cross entropy; set config.objective.prediction = "
        "'probabilities' and form = 'default'.",
    )
    part = config["train"]["batch"] // config["train"]["microbatches"]
    require(
        not net.self_conditioned or part % 2 == 0,
        "config.model.self_conditioning shows an estimate in every second row; expected an even "
        f"train.batch / train.microbatches, got {part}.",
    )
    if kind == "probabilities" and form != "mse":
        context = context_config(config)
        loss, cfg = denoising_loss, DenoisingConfig(noise=given["noise"], context=context)
    else:
        require(
            not (given["context"] or given["prompt"]) and given["weighting"] == "equal",
            "squared errors know no clean context and no weights over time; set "
            "config.objective.context = 0.0, prompt = 0 and weighting = 'equal'.",
        )
        loss, cfg = regression_loss, RegressionConfig(kind, given["noise"])

    def objective(params, frozen, batch, key, rows):
        del frozen
        return loss(params, batch, key, net=net, clock=clock, cfg=cfg, rows=rows)

    return objective
