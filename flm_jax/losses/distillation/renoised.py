"""What both objectives share that match a student to the data at noised states.

A student maps a noisy state y_s, given (s, 1), to a distribution over the tokens of each position
at the end of the flow. What it writes is embedded by the table of a frozen flow and noised to a
later time t, where it is compared with the data: by denoisers in `distribution_matching`, by a
discriminator in `reinforce_matching`. A second network is trained beside the student for that.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout
from flm_jax.denoiser.posterior_input import posterior_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.noise import Views
from flm_jax.flows.time_sampling import Rows, kronecker_uniform, stratified_uniform
from flm_jax.losses.clean_context import at_clean, clean_context, counted
from flm_jax.losses.distillation.base import Teacher
from flm_jax.losses.flow_settings import ContextSettings

_LATEST = 0.995  # of the law of times: nearer to 1 the weight (a/c)^2 grows without bound


@dataclasses.dataclass(frozen=True)
class InTurnConfig:
    """Settings of a student and an auxiliary network that are trained in turn."""

    auxiliary_updates: int = setting(
        4,
        "Number of updates of the auxiliary network before each update of the student; every"
        " update, the student's included, has its own equal part of train.batch.",
        range="[1, inf)",
    )
    auxiliary_lr: float = setting(
        0.0, "Peak learning rate of the auxiliary network; 0 for optim.lr.", range="[0, inf)"
    )
    auxiliary_lead: int = setting(
        0,
        "Number of first steps, in which the auxiliary network alone is trained.",
        range="[0, inf)",
    )
    from_noise: float = setting(
        0.0,
        "Fraction of rows whose student starts from pure noise, s = 0; for the other rows s "
        "is uniform in the quantiles of the distribution of times.",
        range="[0, 1]",
    )


@dataclasses.dataclass(frozen=True)
class RenoisedConfig(InTurnConfig, ContextSettings):
    """Settings of objectives that compare a student with the data at noised states."""

    teacher: str = setting("", "Workdir of the frozen flow, which is required.")
    start: str = setting(
        "",
        "Workdir of the flow, or of the flow map, that initialises the student; empty for the"
        " teacher. The auxiliary network is initialised by the teacher.",
    )
    iterations: int = setting(
        2,
        "Number of calls of a self-conditioned teacher at a state, each with the estimate of "
        "the one before.",
        range="[1, inf)",
    )


class Call(NamedTuple):
    """A call of the student on a batch, and the time to which its output is to be noised.

    Attributes:
      out: logits readout of the student, conditioned on (s, 1).
      views: states y_s [B, L, D] in the student's table, and in the teacher's if that was asked
        for, else None.
      tau_s, tau_t: network times [B], or [B, L] with 1 at clean positions.
      t: time of the path at tau_t.
      mask: mask of positions that count, [B, L]: valid and not clean. At all others the student's
        output is replaced by the data's token, so that the texts that are compared differ in what
        the student is trained to write alone.
      key: key of the noise and of what else is drawn after the call.
    """

    out: Readout
    views: Views
    tau_s: Times
    tau_t: Times
    t: Times
    mask: Array
    key: Key


def start_and_end(
    key: Key, flow: Flow, num: int, rows: Rows, from_noise: float
) -> tuple[Times, Times]:
    """Draws network times tau_s of the student's states and tau_t of its noised outputs, [B].

    In quantiles of the distribution of times, a fraction `from_noise` has u_s = 0, the others U(0,
    .995), and u_t ~ U(u_s, .995). Both are low-discrepancy over the global batch.
    """
    s_key, t_key = jax.random.split(key)
    u = stratified_uniform(s_key, num, rows)
    # One number decides both: below from_noise it is u_s = 0, above it is stretched to U(0, 1)
    # again.
    later = jnp.maximum(u - from_noise, 0.0) / max(1.0 - from_noise, 1e-6)
    u_s = _LATEST * jnp.minimum(later, 1.0)
    u_t = u_s + (_LATEST - u_s) * kronecker_uniform(t_key, num, rows)
    return flow.times.quantile(u_s), flow.times.quantile(u_t)


def call_student(
    params: Params,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: RenoisedConfig,
    beside: Teacher | None = None,
) -> Call:
    """Draws times, contexts and states, and calls the student.

    Args:
      params: parameters of the student, in which `out` is differentiable.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: key for times, contexts and noise.
      rows: indices of these rows in their part of the batch.
      net, flow: student, and the flow whose map it learns.
      cfg: settings.
      beside: teacher that is to be called on the same states; None for none.
    """
    time_key, state_key, later_key = jax.random.split(key, 3)
    tokens = batch["tokens"]
    clean = clean_context(key, batch, cfg.clean, rows)
    taus = start_and_end(time_key, flow, tokens.shape[0], rows, cfg.from_noise)
    tau_s, tau_t, s, t = at_clean(clean, *taus, *(flow.t(tau) for tau in taus))
    other = None if beside is None else beside[0].table(beside[1])
    views = flow.states(rows.fold(state_key), s, tokens, net.table(params), other)
    # Without dropout: the law to be matched is that of what the student writes.
    out = forward(net, params, views[0], tau_s, jnp.ones_like(tau_s))
    mask = counted(batch["mask"], clean)
    return Call(out, views, tau_s, tau_t, t, mask, rows.fold(later_key))


def block_input(teacher: Teacher, z: States, tau_t: Times) -> States:
    """Input of the blocks of auxiliary and teacher for z: the posterior, if they use it.

    It is the teacher's posterior, in whose embeddings z is expressed, at the time of z.
    """
    net, params = teacher
    return posterior_embedding(net, params, z, tau_t) if net.posterior_input else z


def read_blocks(net: Network, params: Params, x: States, t: Times, other: Times, key=None):
    """Calls a network on inputs of its blocks, with times (t, other); returns its Readout."""
    return Readout(net.features(params, x, t, other, key=key), *net.readout(params))
