"""Flows from noise (FLM and embedding flows): objective, learnt times and likelihood bound."""

import functools
from collections.abc import Callable

from flm_jax.build.families.base import Family
from flm_jax.build.flow import any_order, learnt_law, prediction
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.flow import Flow
from flm_jax.flows.settings import LEARNT
from flm_jax.losses.base import Objective
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss
from flm_jax.losses.regression import regression_loss
from flm_jax.metrics.denoising import make_row_nll
from flm_jax.metrics.flow_likelihood import make_flow_bound


def flow_objective(config: Config, net: Network, flow: Flow, teacher: Network | None) -> Objective:
    """Returns the objective of a plain flow: cross entropy, or a squared error of a prediction."""
    del teacher
    cfg = settings(config, "objective")
    squared = cfg.form == "mse" or cfg.prediction != "probabilities"
    _check_prediction(cfg, config, net)
    part = config["train"]["batch"] // config["train"]["microbatches"]
    require(
        not net.self_conditioned or part % 2 == 0,
        "config.model.self_conditioning shows an estimate in every second row; expected an even "
        f"train.batch / train.microbatches, got {part}.",
    )
    require(
        not squared or (not (cfg.context or cfg.prompt) and cfg.weighting == "equal"),
        "squared errors know no clean context and no weights over time; set "
        "config.objective.context = 0.0, prompt = 0 and weighting = 'equal'.",
    )
    require(
        not squared or learnt_law(config) is None,
        "config.flow.clock 'learnt' follows the cross entropy, which squared errors do not have; "
        "set config.objective.form = 'ce', or clock = 'identity'.",
    )
    loss = regression_loss if squared else denoising_loss
    return functools.partial(loss, net=net, flow=flow, cfg=cfg)


def _check_prediction(cfg: DenoisingConfig, config: Config, net: Network) -> None:
    """Refuses predictions that the loss, the noise or the network does not support."""
    kind = cfg.prediction
    require(
        kind == "probabilities" or cfg.form != "ce",
        f"config.objective.prediction {kind} is no distribution, so that there is no cross "
        "entropy; set config.objective.form = 'mse'.",
    )
    require(
        kind == "probabilities" or not net.two_time,
        f"config.objective.prediction {kind} has one time; set config.model.two_time = False.",
    )
    require(
        kind == "probabilities" or config["flow"]["name"] == "linear",
        f"config.objective.prediction {kind} is for config.flow.name 'linear'; got "
        f"{config['flow']['name']!r}.",
    )
    noise = config["flow"]["noise"]
    require(
        kind == "probabilities" or noise == "onehot" or (kind == "denoiser" and noise != "unit"),
        f"config.objective.prediction {kind} lives in R^V; set config.flow.noise = 'onehot'.",
    )
    require(
        not net.self_conditioned or (kind == "probabilities" and cfg.form != "mse"),
        "config.model.self_conditioning goes with cross entropy; set config.objective.prediction = "
        "'probabilities' and form = 'default'.",
    )


def _flow_losses(make: Callable[[Network, Flow], Callable]) -> Callable[..., Callable | None]:
    """Returns (config, net, flow) -> make(net, flow), or None for outputs without probabilities.

    For a self-conditioned network it uses the second call at each state, with the first's estimate.
    """

    def made(config: Config, net: Network, flow: Flow) -> Callable | None:
        net = fixed_point(net, 2) if net.self_conditioned else net
        return make(net, flow) if prediction(config) == "probabilities" else None

    return made


def check_flow_teacher(config: Config, teacher: Config, net: Network, key: str = "teacher") -> None:
    """Refuses a teacher whose output is no probabilities or whose flow differs from the student's.

    Args:
      config: configuration of the student.
      teacher: configuration of the teacher.
      net: network of the teacher.
      key: key of config.objective that names the teacher.
    """
    aim = settings(config, "objective")
    require(
        net.any_order or not (aim.context or aim.prompt),
        f"config.objective.context and prompt need a {key} that was trained with clean context; "
        "got one without: train it with config.objective.context > 0, or set both to 0.",
    )
    check_guidance(config, teacher)
    require(
        prediction(teacher) == "probabilities",
        f"config.objective.{key} predicts a {prediction(teacher)}; expected a model of "
        "prediction probabilities.",
    )
    check_same_flow(config, teacher, f"the {key}")


def check_guidance(config: Config, teacher: Config) -> None:
    """Refuses config.objective.guidance without clean context, or of a teacher that knows no other.

    Args:
      config: configuration of the student.
      teacher: configuration of the teacher.
    """
    weight = getattr(settings(config, "objective"), "guidance", 1.0)
    if weight == 1.0:
        return
    require(
        any_order(config),
        f"config.objective.guidance is {weight} and nothing is clean; expected "
        "config.objective.context above 0, such as 0.5, or guidance 1.",
    )
    theirs = settings(teacher, "objective")
    require(
        not theirs.prompt or theirs.context_dropout > 0.0,
        f"config.objective.guidance is {weight}, and the teacher never saw a text without its "
        "prompt; train it with config.objective.context_dropout, 0.1 for example.",
    )


def check_same_flow(config: Config, other: Config, whose: str) -> None:
    """Refuses a flow that differs from that of another model, which `whose` describes."""
    theirs, own = (shared_settings(c) for c in (other, config))
    for name, value in theirs.items():
        require(
            own.get(name) == value,
            f"config.flow.{name} is {own.get(name)!r}, that of {whose} {value!r}; set it to that.",
        )


def shared_settings(config: Config) -> dict[str, object]:
    """Settings that must agree for a flow to learn from another; one-hot draws may differ."""
    cfg = settings(config, "flow")
    found = {"name": config["flow"]["name"], "clock": cfg.clock}
    found["noise"] = "unit" if cfg.noise == "unit" else "projected or onehot"
    if cfg.clock == LEARNT:
        found |= {"law.low": cfg.law.low, "law.high": cfg.law.high, "law.learnt": cfg.law.learnt}
    return found


FLOW = Family(
    name="flow",
    objective=flow_objective,
    networks=("dit",),
    kind=lambda net: "flow map" if net.two_time else "flow (Euler)",
    row_nll=_flow_losses(make_row_nll),
    row_likelihood=_flow_losses(make_flow_bound),
    likelihood="upper bound",
    draws=16,
    self_conditioned=True,
    check_teacher=check_flow_teacher,
    from_noise=True,
)
