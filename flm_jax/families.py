"""What the commands do with each family of models: how to sample it, how to score it.

One entry a family, found by config.objective.name; objectives that are not named train flows.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from flm_jax import policies
from flm_jax.adaptation import bridge_config
from flm_jax.alignment import alignment_config
from flm_jax.build import masked_config
from flm_jax.evals.alignment import make_alignment_figures
from flm_jax.evals.bridge import make_bridge_nll
from flm_jax.evals.denoising import make_row_nll
from flm_jax.evals.flow_likelihood import make_flow_bound
from flm_jax.evals.likelihood import make_autoregressive_nll, make_masked_nll
from flm_jax.flows.clocks import Clock
from flm_jax.flows.self_conditioning import fixed_point
from flm_jax.objectives import prediction
from flm_jax.samplers import (
    autoregressive,
    masked_bridge,
    masked_diffusion,
    onehot,
    refinement,
    x_prediction,
)
from flm_jax.samplers import steering as steers
from flm_jax.samplers.categorical import Choice
from flm_jax.types import Network, require, unknown_name

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Options:
    """How tokens are drawn; the defaults fit every family.

    Attributes:
      temperature, top_p: see `Choice`; by default a flow takes the most probable tokens of its last
        read-out, and the others draw at temperature 1.
      method: of masked diffusion: "ancestral", "confidence" or "flow".
      block_length: of "confidence" and "flow"; 0 for one block.
      step_size, re_edit, hard_commit: of "flow", see `x_prediction.Flowing`.
      policy: of "flow": workdir of `train_policy`, whose step sizes are taken; "" for none.
      refine: of any-order flow maps: posterior refinement with the budget "topk" or "uniform"; ""
        for none.
      refine_threshold: of refinement: probability above which predictions are kept at once.
      refine_until: of refinement: clock time that its jumps end at, in [0, 1].
      bridge: of masked language flows.
      steering: of flows.
    """

    temperature: float | None = None
    top_p: float = 1.0
    method: str = "ancestral"
    block_length: int = 0
    step_size: float = 0.0
    re_edit: bool = True
    hard_commit: bool = True
    policy: str = ""
    refine: str = ""
    refine_threshold: float = 1.0
    refine_until: float = 1.0
    bridge: masked_bridge.Bridging = masked_bridge.Bridging()  # noqa: RUF009  frozen
    steering: steers.Steering = steers.NONE

    def choice(self, temperature: float) -> Choice:
        """How tokens are drawn, with the temperature that a family takes by default."""
        given = self.temperature
        return Choice(temperature if given is None else given, self.top_p)


PLAIN = Options()


class Family(NamedTuple):
    """What is done with a model.

    Attributes:
      kind: network -> its name in tables.
      sampler: (config, net, clock, steps, options, aids) -> ((key, params, given, extra) ->
        Samples), to be jitted; aids and extra are what steering needs, see `steering.Aids`.
      row_nll: (config, net, clock) -> row_nll, see `evals.denoising`; None where the output is no
        distribution.
      row_likelihood: likewise, of which `evals.likelihood` makes the negative log-likelihood or a
        bound on it; the same as row_nll but for flows. None where there is none.
      likelihood: what that is: "exact" or "upper bound".
      draws: of row_likelihood a sequence.
      steps_free: whether the number of steps is a choice; else it is the length.
      timed: whether row_nll depends on tau.
      sees_ahead: whether what is written takes account of given tokens after it.
      aligned: (config, net) -> figures of `evals.alignment` for training to report beside its
        base's; None where there are none.
    """

    kind: Callable[[Network], str]
    sampler: Callable[..., Callable]
    row_nll: Callable[..., Callable | None]
    row_likelihood: Callable[..., Callable | None]
    likelihood: str
    draws: int
    steps_free: bool = True
    timed: bool = True
    sees_ahead: bool = True
    aligned: Callable[..., Callable] | None = None


_FLOWING = ("step_size", "re_edit", "hard_commit")
_OF_REFINEMENT = ("refine", "refine_threshold", "refine_until")
_OF_MASKED = ("method", "block_length", "policy", *_FLOWING)


def _refuse(options: Options, kind: str, *names: str) -> None:
    for name in names:
        got, default = getattr(options, name), getattr(Options, name)
        require(
            got == default,
            f"got {name}={got}, which {kind} does not know; leave it at {default}.",
        )


def _unsteered(options: Options, kind: str) -> None:
    for field in dataclasses.fields(options.steering):
        got = getattr(options.steering, field.name)
        require(
            got == field.default,
            f"got {field.name}={got}, which steers flows; this is {kind}: leave it at "
            f"{field.default!r}.",
        )


def _flow(
    config: Config,
    net: Network,
    clock: Clock,
    steps: int,
    options: Options,
    aids: steers.Aids = steers.NO_AIDS,
) -> Callable:
    _refuse(options, "a flow", *_OF_MASKED)
    if (kind := prediction(config)) != "probabilities":
        return _onehot(net, clock, steps, options, kind)
    if options.refine:
        return _refined(config, net, steps, options)
    _refuse(options, "a flow without refinement", *_OF_REFINEMENT[1:])
    choice = options.choice(0.0)
    require(
        choice.top_p == 1.0 or choice.temperature > 0.0,
        f"got top_p={choice.top_p} without a temperature: a flow takes the most probable tokens; "
        "give temperature=1, for example.",
    )
    steers.check(options.steering, net, steps)
    how = {"clock": clock, "steps": steps, "steering": options.steering, "choice": choice}

    def draw(key, params, given, extra=None):
        return steers.sample(key, net, params, given=given, aids=aids, extra=extra, **how)

    return draw


def _onehot(net: Network, clock: Clock, steps: int, options: Options, kind: str) -> Callable:
    _unsteered(options, f"one that predicts a {kind}")
    _refuse(options, f"a flow that predicts a {kind}", "temperature", "top_p", *_OF_REFINEMENT)

    def draw(key, params, given, extra=None):
        settings = dict(clock=clock, steps=steps, given=given, prediction=kind)
        return onehot.sample(key, net, params, **settings)

    return draw


def _refined(config: Config, net: Network, steps: int, options: Options) -> Callable:
    _unsteered(options, "posterior refinement")
    _refuse(options, "posterior refinement", "temperature", "top_p")
    if options.refine not in refinement.BUDGETS:
        raise unknown_name("refine", options.refine, refinement.BUDGETS)
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
        return refinement.sample_refined(key, net, params, given=given, **how)

    return draw


def _flow_losses(make: Callable[[Network, Clock], Callable]) -> Callable[..., Callable | None]:
    """(config, net, clock) -> make(net, clock), or None where the output is no distribution.

    Of a self-conditioned network it is the second call at each state, with the first's estimate.
    """

    def made(config: Config, net: Network, clock: Clock) -> Callable | None:
        net = fixed_point(net, 2) if net.self_conditioned else net
        return make(net, clock) if prediction(config) == "probabilities" else None

    return made


def _autoregressive(
    config: Config,
    net: Network,
    clock: Clock,
    steps: int,
    options: Options,
    aids: steers.Aids = steers.NO_AIDS,
) -> Callable:
    del config, clock, steps, aids
    _refuse(options, "an autoregressive model", *_OF_REFINEMENT, *_OF_MASKED)
    _unsteered(options, "an autoregressive model")
    choice = options.choice(1.0)

    def draw(key, params, given, extra=None):
        return autoregressive.sample(key, net, params, given=given, choice=choice)

    return draw


def _masked(
    config: Config,
    net: Network,
    clock: Clock,
    steps: int,
    options: Options,
    aids: steers.Aids = steers.NO_AIDS,
) -> Callable:
    del clock, aids
    _refuse(options, "masked diffusion", *_OF_REFINEMENT)
    _unsteered(options, "masked diffusion")
    methods = {
        "ancestral": masked_diffusion.sample_ancestral,
        "confidence": masked_diffusion.sample_confident,
    }
    if options.method not in (*methods, "flow"):
        raise unknown_name("method", options.method, (*methods, "flow"))
    more = {}
    if options.method == "ancestral":
        _refuse(options, "method ancestral", "block_length")
    else:
        require(
            0 <= options.block_length <= net.max_length,
            f"got block_length={options.block_length}; expected 0 (one block) to "
            f"{net.max_length} tokens.",
        )
        more["block_length"] = options.block_length
    more |= {"steps": steps, "time_conditioning": masked_config(config).time_conditioning}
    if options.method == "flow":
        return _x_prediction(net, options, more)
    _refuse(options, f"method {options.method}", "policy", *_FLOWING)
    more["choice"] = options.choice(1.0)

    def draw(key, params, given, extra=None):
        return methods[options.method](key, net, params, given=given, **more)

    return draw


def _x_prediction(net: Network, options: Options, more: dict[str, Any]) -> Callable:
    _refuse(options, "method flow", "temperature", "top_p")
    how = x_prediction.Flowing(**{name: getattr(options, name) for name in _FLOWING})
    if options.policy:
        _refuse(options, "method flow with a policy", "step_size")
        more["stepper"] = policies.stepper(policies.load(options.policy))

    def draw(key, params, given, extra=None):
        return x_prediction.sample(net, params, given=given, how=how, **more)

    return draw


def _bridge(
    config: Config,
    net: Network,
    clock: Clock,
    steps: int,
    options: Options,
    aids: steers.Aids = steers.NO_AIDS,
) -> Callable:
    del clock, aids
    _unsteered(options, "a masked flow")
    _refuse(options, "a masked flow", "temperature", "top_p", *_OF_REFINEMENT, *_OF_MASKED)
    how = dataclasses.replace(options.bridge, eos_id=config["bridge"]["eos_id"])
    sigma = config["bridge"]["sigma"]

    def draw(key, params, given, extra=None):
        run = masked_bridge.sample
        return run(key, net, params, steps=steps, given=given, how=how, sigma=sigma)

    return draw


FLOW = Family(
    kind=lambda net: "flow map" if net.two_time else "flow (Euler)",
    sampler=_flow,
    row_nll=_flow_losses(make_row_nll),
    row_likelihood=_flow_losses(make_flow_bound),
    likelihood="upper bound",
    draws=16,
)


def _causal_nll(config: Config, net: Network, clock: Clock) -> Callable:
    del config, clock
    return make_autoregressive_nll(net)


def _masked_nll(config: Config, net: Network, clock: Clock) -> Callable:
    del clock
    return make_masked_nll(net, masked_config(config))


_MASKED = Family(
    kind=lambda net: "masked diffusion",
    sampler=_masked,
    row_nll=_masked_nll,
    row_likelihood=_masked_nll,
    likelihood="upper bound",
    draws=16,
)

FAMILIES = {
    "autoregressive": Family(
        kind=lambda net: "autoregressive",
        sampler=_autoregressive,
        row_nll=_causal_nll,
        row_likelihood=_causal_nll,
        likelihood="exact",
        draws=1,
        steps_free=False,
        timed=False,
        sees_ahead=False,
    ),
    "masked": _MASKED,
    "alignment": _MASKED._replace(
        aligned=lambda config, net: make_alignment_figures(net, alignment_config(config))
    ),
    "masked_bridge": Family(
        kind=lambda net: "masked flow",
        sampler=_bridge,
        row_nll=lambda config, net, clock: make_bridge_nll(net, bridge_config(config)),
        row_likelihood=lambda config, net, clock: None,
        likelihood="",
        draws=0,
    ),
}


def family(config: Config) -> Family:
    """The family of a configuration."""
    return FAMILIES.get(config["objective"]["name"], FLOW)
