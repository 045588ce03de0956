"""Everything that steers a flow at inference, put together: solver, noise, guidance, reward."""

import dataclasses

import jax.numpy as jnp

from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.clocks import Clock
from flm_jax.samplers import adaptive, euler
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.guidance import GREEDY, Denoiser, Weak, autoguided, plain
from flm_jax.samplers.guides import NO_GUIDES, Guides
from flm_jax.samplers.heun import heun
from flm_jax.samplers.reward_guidance import make_nudge

SOLVERS = ("euler", "heun", "adaptive")


@dataclasses.dataclass(frozen=True)
class Steering:
    """How a flow is steered; the defaults leave it as it is, to the bit.

    Attributes:
      solver: of a flow's ODE: "euler", "heun" or "adaptive"; flow maps jump, and need none.
      tolerance: error of a step of "adaptive"; see `samplers.adaptive`.
      gamma: share of fresh noise after each jump of a flow map, in [0, 1].
      guidance: eta of autoguidance; 1 for none.
      weak: what guides: the workdir of a weaker model, or "".
      weak_dropout: or the model itself at this dropout rate; 0 for none.
      reward: folder of a trained reward, or "".
      reward_scale: lambda; see `make_nudge`.
      iterations: of self-conditioned flows: network calls at each state, each with the estimate of
        the one before (`self_conditioning.fixed_point`); 0 for one call, with that of the last
        Euler step.
    """

    solver: str = "euler"
    tolerance: float = 0.01
    gamma: float = 0.0
    guidance: float = 1.0
    weak: str = ""
    weak_dropout: float = 0.0
    reward: str = ""
    reward_scale: float = 0.0
    iterations: int = 0

    def __post_init__(self):
        one_of("solver", self.solver, SOLVERS)
        finite = float("inf")
        require(
            0.0 < self.tolerance < finite, f"tolerance is {self.tolerance}; expected more than 0."
        )
        require(
            self.solver == "adaptive" or self.tolerance == Steering.tolerance,
            f"got tolerance={self.tolerance} with solver={self.solver}, which has none; give "
            "solver=adaptive.",
        )
        require(0.0 <= self.gamma <= 1.0, f"gamma is {self.gamma}; expected 0 to 1.")
        require(self.iterations >= 0, f"iterations is {self.iterations}; expected 0 or more.")
        require(
            abs(self.guidance) < finite, f"guidance is {self.guidance}; expected a finite number."
        )
        require(
            0.0 <= self.weak_dropout < 1.0,
            f"weak_dropout is {self.weak_dropout}; expected a rate in [0, 1), 0 for none.",
        )
        require(
            not (self.weak and self.weak_dropout),
            f"got weak={self.weak} and weak_dropout={self.weak_dropout}; expected one of them.",
        )
        require(
            self.guidance == 1.0 or bool(self.weak) or self.weak_dropout > 0.0,
            f"got guidance={self.guidance} and nothing to guide by; give weak=WORKDIR (a weaker "
            "model) or weak_dropout=RATE.",
        )
        require(
            abs(self.reward_scale) < finite,
            f"reward_scale is {self.reward_scale}; expected a finite number.",
        )
        require(
            self.reward_scale == 0.0 or bool(self.reward),
            f"got reward_scale={self.reward_scale} and no reward; give reward=FOLDER.",
        )
        require(
            self.reward_scale == 0.0 or self.solver == "euler",
            f"got a reward with solver={self.solver}; rewards go with solver=euler alone.",
        )


NONE = Steering()


def check_steering(steering: Steering, net: Network, steps: int) -> None:
    """Refuses what a network cannot do, before anything is compiled."""
    require(
        steering.solver == "euler" or not net.two_time,
        f"got solver={steering.solver} for a flow map, which jumps instead of solving an ODE; "
        "leave it at euler.",
    )
    require(
        steering.gamma == 0.0 or net.two_time,
        f"got gamma={steering.gamma} for a flow with one time; fresh noise goes between the jumps "
        "of a flow map: leave it at 0.",
    )
    require(
        steering.solver != "adaptive" or steps >= adaptive.MIN_ADAPTIVE_CALLS,
        f"got steps={steps} with solver=adaptive, where they bound the network calls; expected at "
        f"least {adaptive.MIN_ADAPTIVE_CALLS}, for example 256.",
    )
    if steering.iterations:
        fixed_point(net, steering.iterations)  # refuses a network that takes no estimate
        return
    plainly = steering.solver == "euler" and steering.guidance == 1.0 and not steering.reward_scale
    require(
        plainly or not net.self_conditioned,
        "a self-conditioned flow carries its estimate along plain Euler steps alone; with another "
        "solver, guidance or a reward give iterations=2, for example.",
    )


def make_denoiser(
    net: Network, params: Params, given: Given, steering: Steering, guides: Guides, extra: dict
) -> Denoiser:
    """Plain where guidance is 1."""
    if steering.guidance == 1.0:
        return plain(net, params, given)
    weak = Weak(guides.weak, extra.get("weak"))
    return autoguided(net, params, weak, steering.guidance, given)


def sample_flow(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    clock: Clock,
    steps: int,
    steering: Steering = NONE,
    choice: Choice = GREEDY,
    guides: Guides = NO_GUIDES,
) -> Samples:
    """Draws noise and carries it to data as `steering` says.

    Args:
      key: of noise, dropout and drawn tokens.
      params: of `net`.
      given: prescribed tokens [B, L], which stay exactly as they are.
      extra: parameters of the networks in `guides`.
      net, clock: the denoiser and tau(t) of its vocabulary.
      steps: evaluations of the denoiser ("adaptive": at most); static. Each is one network call,
        or `steering.iterations`; guidance adds one to each, a reward as many with their gradient.
      choice: how the tokens of the last read-out are chosen.
      guides: the networks that `steering` names.

    Returns:
      Samples; given positions are exactly as given.
    """
    extra, each = extra or {}, max(steering.iterations, 1)
    net = fixed_point(net, each) if steering.iterations else net
    denoiser = make_denoiser(net, params, given, steering, guides, extra)
    denoiser = denoiser._replace(calls=denoiser.calls + each - 1)
    y_0 = denoiser.noise(key)
    common = {"clock": clock, "steps": steps, "choice": choice}
    if steering.solver == "adaptive":
        more = {"given": given, "tolerance": steering.tolerance}
        return adaptive.adaptive(key, y_0, denoiser, **common, **more)
    nudge, calls = None, denoiser.calls
    if steering.reward_scale:
        nudge = make_nudge(
            net,
            params,
            guides.reward,
            extra["reward"],
            steering.reward_scale,
            denoiser.table,
            given,
        )
        calls += each
    if steering.solver == "heun":
        found = heun(key, y_0, denoiser, **common)
    else:
        found = euler.carry(key, y_0, denoiser, gamma=steering.gamma, nudge=nudge, **common)
    return found if calls == 1 else found._replace(calls=jnp.asarray(calls * steps, jnp.int32))
