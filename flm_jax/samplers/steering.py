"""Everything that steers a flow at inference, put together: solver, noise, guidance, reward."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.flows import readout
from flm_jax.flows.clocks import Clock
from flm_jax.flows.self_conditioning import fixed_point
from flm_jax.flows.states import hold_given
from flm_jax.samplers import flow_map, solvers
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.common import Given, Samples, held_times
from flm_jax.samplers.denoisers import GREEDY, Denoiser, Weak, autoguided, plain
from flm_jax.types import Key, Network, Params, require, unknown_name

SOLVERS = ("euler", "heun", "adaptive")


@dataclasses.dataclass(frozen=True)
class Steering:
    """How a flow is steered; the defaults leave it as it is, to the bit.

    Attributes:
      solver: of a flow's ODE: "euler", "heun" or "adaptive"; flow maps jump, and need none.
      tolerance: error of a step of "adaptive"; see `solvers.adaptive`.
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
        if self.solver not in SOLVERS:
            raise unknown_name("solver", self.solver, SOLVERS)
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


class Reward(NamedTuple):
    """Any differentiable function of text as distributions over tokens.

    Attributes:
      table: parameters -> [V, d]: a text enters as probs @ table, [B, L, d] (with the identity, as
        the probabilities themselves).
      score: (parameters, [B, L, d]) -> [B], larger is better; log p(wish | text) makes
        reward_scale = 1 the conditional law.
    """

    table: Callable[[Params], Float[Array, "v d"]]
    score: Callable[[Params, Float[Array, "b l d"]], Float[Array, "b"]]


class Aids(NamedTuple):
    """What steering needs besides the model itself; `extra` holds the parameters, at run time.

    Attributes:
      weak: network of extra["weak"], or the model's own with dropout if that is absent.
      reward: scored with extra["reward"].
    """

    weak: Network | None = None
    reward: Reward | None = None


NO_AIDS = Aids()


def check(steering: Steering, net: Network, steps: int) -> None:
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
        steering.solver != "adaptive" or steps >= solvers.MIN_ADAPTIVE_CALLS,
        f"got steps={steps} with solver=adaptive, where they bound the network calls; expected at "
        f"least {solvers.MIN_ADAPTIVE_CALLS}, for example 256.",
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


def make_nudge(
    net: Network,
    params: Params,
    reward: Reward,
    reward_params: Params,
    scale: float,
    joint: Float[Array, "v w"],
    given: Given,
) -> flow_map.Nudge:
    """Moves states up the gradient of the reward of where they lead.

    In the one-hot space, x <- x + c grad_x r(X_{s,1}(x)), where X_{s,1} is one call of a flow map,
    D_s(x) of a plain flow; embedded, y <- y + c E^T E grad_y r. The law tilted by exp(scale r) has,
    to first order in its denoised state, the denoiser D + scale (1-s)^2/s grad_x r; over a step
    from s to t that is c = scale (t-s)(1-s)/s. Near noise, where this explodes and the gradient of
    a plain flow vanishes, s in the denominator is kept at t-s at least.

    Args:
      joint: table that the states are seen through, E in its first D columns.
    """
    table, wishes = net.table(params), reward.table(reward_params)
    spread = jnp.matmul(table.T, joint, precision=jax.lax.Precision.HIGHEST)
    width = table.shape[1]

    def nudge(y_s, y_0, tau_s, s, t):
        t_held, *taus = (
            held_times(net, given, x)
            for x in (s, tau_s, jnp.ones_like(tau_s) if net.two_time else tau_s)
        )

        def value(y):
            held = hold_given(y, t_held, given.tokens, given.mask, y_0[..., :width], table)
            out = readout.read(net, params, held, *taus)
            ahead = readout.expected_embedding(out, wishes, net)
            ahead = jnp.where(given.mask[..., None], wishes[given.tokens], ahead)
            return jnp.sum(reward.score(reward_params, ahead))

        gradient = jax.grad(value)(y_s[..., :width])
        c = scale * (t - s) * (1.0 - s) / jnp.maximum(s, t - s)
        return y_s + c * jnp.matmul(gradient, spread, precision=jax.lax.Precision.HIGH)

    return nudge


def make_denoiser(
    net: Network, params: Params, given: Given, steering: Steering, aids: Aids, extra: dict
) -> Denoiser:
    """Plain where guidance is 1."""
    if steering.guidance == 1.0:
        return plain(net, params, given)
    weak = Weak(aids.weak, extra.get("weak"))
    return autoguided(net, params, weak, steering.guidance, given)


def sample(
    key: Key,
    net: Network,
    params: Params,
    *,
    clock: Clock,
    steps: int,
    given: Given,
    steering: Steering = NONE,
    choice: Choice = GREEDY,
    aids: Aids = NO_AIDS,
    extra: dict | None = None,
) -> Samples:
    """Draws noise and carries it to data as `steering` says.

    Args:
      steps: evaluations of the denoiser ("adaptive": at most); static. Each is one network call,
        or `steering.iterations`; guidance adds one to each, a reward as many with their gradient.
      choice: how the tokens of the last read-out are chosen.
      aids, extra: the networks that `steering` names, and their parameters.

    Returns:
      Samples; given positions are exactly as given.
    """
    extra, each = extra or {}, max(steering.iterations, 1)
    net = fixed_point(net, each) if steering.iterations else net
    denoiser = make_denoiser(net, params, given, steering, aids, extra)
    denoiser = denoiser._replace(calls=denoiser.calls + each - 1)
    y_0 = denoiser.noise(key)
    common = {"clock": clock, "steps": steps, "choice": choice}
    if steering.solver == "adaptive":
        more = {"given": given, "tolerance": steering.tolerance}
        return solvers.adaptive(key, y_0, denoiser, **common, **more)
    nudge, calls = None, denoiser.calls
    if steering.reward_scale:
        nudge = make_nudge(
            net,
            params,
            aids.reward,
            extra["reward"],
            steering.reward_scale,
            denoiser.table,
            given,
        )
        calls += each
    if steering.solver == "heun":
        found = solvers.heun(key, y_0, denoiser, **common)
    else:
        found = flow_map.carry(key, y_0, denoiser, gamma=steering.gamma, nudge=nudge, **common)
    return found if calls == 1 else found._replace(calls=jnp.asarray(calls * steps, jnp.int32))
