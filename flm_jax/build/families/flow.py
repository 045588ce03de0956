"""Flows over one-hot tokens (FLM): objective, sampler and likelihood bound."""

import functools
from collections.abc import Callable

from flm_jax.build.families.base import Family
from flm_jax.build.flow import context_config, prediction
from flm_jax.build.sampler import OF_MASKED, OF_REFINEMENT, Options, refuse, unsteered
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.clocks import Clock
from flm_jax.losses.base import Objective
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss
from flm_jax.losses.regression import RegressionConfig, regression_loss
from flm_jax.metrics.denoising import make_row_nll
from flm_jax.metrics.flow_likelihood import make_flow_bound
from flm_jax.samplers import posterior_refinement
from flm_jax.samplers.flow import check_steering, sample_flow
from flm_jax.samplers.guides import NO_GUIDES, Guides
from flm_jax.samplers.onehot import sample_onehot


def flow_objective(
    config: Config, net: Network, clock: Clock, teacher: Network | None
) -> Objective:
    """The objective of a plain flow: cross entropy, or a squared error of any prediction."""
    del teacher
    given, kind = config["objective"], prediction(config)
    form = one_of("config.objective.form", given["form"], ("default", "ce", "mse"))
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
    return functools.partial(loss, net=net, clock=clock, cfg=cfg)


def flow_sampler(
    config: Config,
    net: Network,
    clock: Clock,
    steps: int,
    options: Options,
    guides: Guides = NO_GUIDES,
) -> Callable:
    refuse(options, "a flow", *OF_MASKED)
    if (kind := prediction(config)) != "probabilities":
        return _onehot(net, clock, steps, options, kind)
    if options.refine:
        return _refined(config, net, steps, options)
    refuse(options, "a flow without refinement", *OF_REFINEMENT[1:])
    choice = options.choice(0.0)
    require(
        choice.top_p == 1.0 or choice.temperature > 0.0,
        f"got top_p={choice.top_p} without a temperature: a flow takes the most probable tokens; "
        "give temperature=1, for example.",
    )
    check_steering(options.steering, net, steps)
    how = {"net": net, "clock": clock, "steps": steps, "guides": guides}
    return functools.partial(sample_flow, steering=options.steering, choice=choice, **how)


def _onehot(net: Network, clock: Clock, steps: int, options: Options, kind: str) -> Callable:
    unsteered(options, f"one that predicts a {kind}")
    refuse(options, f"a flow that predicts a {kind}", "temperature", "top_p", *OF_REFINEMENT)

    def draw(key, params, given, extra=None):
        settings = dict(clock=clock, steps=steps, given=given, prediction=kind)
        return sample_onehot(key, net, params, **settings)

    return draw


def _refined(config: Config, net: Network, steps: int, options: Options) -> Callable:
    unsteered(options, "posterior refinement")
    refuse(options, "posterior refinement", "temperature", "top_p")
    one_of("refine", options.refine, posterior_refinement.BUDGETS)
    require(
        net.two_time and {"context": 0.0, **config["objective"]}["context"] > 0.0,
        f"got refine={options.refine}, which needs a flow map trained with random clean context; "
        "train it with config.model.two_time = True and config.objective.context > 0.",
    )
    threshold = options.refine_threshold
    require(
        0.0 <= threshold <= 1.0,
        f"got refine_threshold={threshold}; expected a probability, 1 for none.",
    )
    until = options.refine_until
    require(0.0 <= until <= 1.0, f"got refine_until={until}; expected a clock time in [0, 1].")
    how = {"steps": steps, "budget": options.refine, "threshold": threshold, "until": until}

    def draw(key, params, given, extra=None):
        return posterior_refinement.sample_refined(key, net, params, given=given, **how)

    return draw


def _flow_losses(make: Callable[[Network, Clock], Callable]) -> Callable[..., Callable | None]:
    """(config, net, clock) -> make(net, clock), or None where the output is no distribution.

    Of a self-conditioned network it is the second call at each state, with the first's estimate.
    """

    def made(config: Config, net: Network, clock: Clock) -> Callable | None:
        net = fixed_point(net, 2) if net.self_conditioned else net
        return make(net, clock) if prediction(config) == "probabilities" else None

    return made


def check_flow_teacher(config: Config, teacher: Config, net: Network, key: str = "teacher") -> None:
    """Refuses to learn a flow from a model whose probabilities along the same clock it lacks.

    Args:
      config: of the student.
      teacher: of the teacher; older workdirs may lack keys.
      net: the teacher's network.
      key: of config.objective that names it.
    """
    aim = config["objective"]
    require(
        net.any_order or not (aim["context"] or aim["prompt"]),
        f"config.objective.context and prompt need a {key} that was trained with clean context; "
        "got one without: train it with config.objective.context > 0, or set both to 0.",
    )
    require(
        prediction(teacher) == "probabilities",
        f"config.objective.{key} predicts a {prediction(teacher)}; expected a model of "
        "prediction probabilities.",
    )
    clocks = [c["objective"].get("clock", "decoding") for c in (teacher, config)]
    require(
        clocks[0] == clocks[1],
        f"config.objective.clock is {clocks[1]!r}, that of the {key} {clocks[0]!r}; set it to "
        "that.",
    )


FLOW = Family(
    name="flow",
    objective=flow_objective,
    networks=("dit",),
    kind=lambda net: "flow map" if net.two_time else "flow (Euler)",
    sampler=flow_sampler,
    row_nll=_flow_losses(make_row_nll),
    row_likelihood=_flow_losses(make_flow_bound),
    likelihood="upper bound",
    draws=16,
    accepts=frozenset({"context", "prompt", "weighting", "prediction", "self_conditioning"}),
    check_teacher=check_flow_teacher,
    one_hot=True,
)
