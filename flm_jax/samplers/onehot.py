"""Euler steps of the one-hot flow in R^V, for outputs that are not probabilities.

The state of `samplers.euler` lives in R^D and its output is a softmax. A network that was trained
to predict the denoiser or the velocity as a plain vector (`losses.regression`) is sampled in R^V:
its token is the largest entry of the last denoiser. The state takes [B, L, V] in float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import settings_of
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import probabilities
from flm_jax.denoiser.tiled import head_logits, standing
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given, SamplerConfig, Samples
from flm_jax.samplers.watching import show


def check_onehot(cfg: SamplerConfig, prediction: str) -> None:
    """Refuses all settings except plain Euler steps."""
    for name, one in settings_of(type(cfg)).items():
        require(
            getattr(cfg, name) == one.default and type(cfg).__name__ == "EulerConfig",
            f"got {name}={getattr(cfg, name)!r} for a flow that predicts a {prediction}, which has "
            "plain Euler steps alone; leave sampler euler as it is.",
        )


def sample_onehot(
    key: Key,
    net: Network,
    params: Params,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    prediction: str,
) -> Samples:
    """Draws x_0 ~ N(0, I_V) and transports it to data on a grid uniform in tau."""
    x_0 = jax.random.normal(key, (*given.tokens.shape, net.vocab_size))
    settings = dict(flow=flow, steps=steps, given=given, prediction=prediction)
    return sample_onehot_from(x_0, net, params, **settings)


def sample_onehot_from(
    x_0: Float[Array, "b l v"],
    net: Network,
    params: Params,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    prediction: str,
) -> Samples:
    """Takes Euler steps x_t = x_s + (t-s) b_s(x_s); the last one returns the denoiser.

    Args:
      x_0: noise in R^V.
      net: a one-time network.
      flow, steps, given: the same as for `euler.sample_euler_from`; prescribed tokens stay on their
        paths.
      prediction: meaning of the network's output, one of `losses.denoising.PREDICTIONS`.

    Returns:
      Samples; the confidence is the largest entry of the denoiser, which need not be in [0, 1].
    """
    taus = flow.grid(steps)
    times = flow.t(taus)
    table, rows = net.table(params), x_0.shape[0]
    clean = jax.nn.one_hot(given.tokens, net.vocab_size, dtype=jnp.float32)
    tokens_alone = standing(net.vocab_size, net.token_count)

    def denoised(x_s, out, s):
        if prediction == "probabilities":
            return probabilities(out, net)
        raw = head_logits(out.features, (out.kernel, out.bias), 0.0)
        return flow.path.denoiser_from_velocity(x_s, raw, s) if prediction == "velocity" else raw

    def step(x_s, now):
        k, *whens = now
        tau_s, s, t = (jnp.full(rows, time) for time in whens)
        held = flow.path.at(s, clean, x_0)
        x_s = jnp.where(given.mask[..., None], held, x_s)
        y_s = jnp.matmul(x_s, table, precision=jax.lax.Precision.HIGH)
        delta = denoised(x_s, forward(net, params, y_s, tau_s, tau_s), s)
        delta, scores = (jnp.where(tokens_alone, delta, rest) for rest in (0.0, -jnp.inf))
        tokens = jnp.where(given.mask, given.tokens, jnp.argmax(scores, -1).astype(jnp.int32))
        seen = (tokens, jnp.where(given.mask, 1.0, jnp.max(scores, axis=-1)))
        x_t = flow.path.step(x_s, delta, s, t)
        return show(k, tokens, x_t, k < steps - 1), seen

    grid = (jnp.arange(steps), taus[:-1], times[:-1], times[1:])
    _, (tokens, confidence) = jax.lax.scan(step, x_0, grid)
    return Samples(tokens[-1], tokens, confidence)
