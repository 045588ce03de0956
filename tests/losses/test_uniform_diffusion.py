"""Uniform-state diffusion against enumeration: posterior, bound, gradient, curriculum."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.denoiser.gaussian_tokens import largest_entries, softened
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.time_sampling import Rows
from flm_jax.flows.uniform_noise import gaussian_times, posterior_logits, replaced
from flm_jax.losses.base import Frozen
from flm_jax.losses.uniform_diffusion import (
    Noisy,
    UniformDiffusionConfig,
    uniform_loss,
    uniform_loss_at,
)
from flm_jax.metrics.uniform_diffusion import make_uniform_nll
from helpers.heads import head_network, parallel, readout
from helpers.laws import (
    ENTROPY,
    KEY,
    LAW,
    LENGTH,
    SEQUENCES,
    VOCAB,
    exact_uniform_network,
    law_batch,
)

EXACT = exact_uniform_network()
PLAIN = UniformDiffusionConfig(curriculum=0.0)


def forward_law(signal, number):
    """q(z | x) as a matrix, [x, z]."""
    return signal * np.eye(number) + (1 - signal) / number


@pytest.mark.parametrize("noise, later", [(1.0, 0.4), (0.7, 0.2), (0.3, 0.0)])
def test_the_posterior_is_that_of_bayes(noise, later):
    """q(z_b | z_a, x) from q(z_b | x) and the step, and the published form of it, V = 4."""
    number, a, b = 4, 1 - noise, 1 - later
    step, law = forward_law(a / b, number), forward_law(b, number)
    x = np.array([0.1, 0.2, 0.3, 0.4])
    states = np.arange(number)
    joint = (x @ law)[None] * step.T  # [z_a, z_b]
    want = joint / joint.sum(axis=1, keepdims=True)
    level = lambda value: jnp.full(number, value)
    padded = jnp.log(jnp.asarray(np.append(x, 0.0)))[None].repeat(number, axis=0)
    logits = posterior_logits(padded, jnp.asarray(states), level(noise), level(later), number)
    found = np.asarray(jax.nn.softmax(logits, axis=-1))
    np.testing.assert_allclose(found[:, :number], want, rtol=1e-5)
    assert (found[:, number] == 0).all(), "rows beyond the tokens are never drawn"
    z = np.eye(number)
    above = number * a * z * x + (a / b - a) * z + (b - a) * x + (1 - a / b) * (1 - b) / number
    below = number * a * (z @ x)[:, None] + 1 - a
    np.testing.assert_allclose(found[:, :number], above / below, rtol=1e-5)


def test_tokens_are_replaced_by_any_token_and_prompts_stay():
    tokens, free = jnp.full((4000, 4), 2), jnp.arange(4)[None].repeat(4000, 0) > 0
    out = np.asarray(replaced(KEY, tokens, jnp.full(4000, 0.6), free, 3))
    assert (out[:, 0] == 2).all()
    share = [(out[:, 1:] == k).mean() for k in range(3)]
    np.testing.assert_allclose(share, [0.2, 0.2, 0.6], atol=0.02)


def brackets(clean, seen, guess, signal):
    """The integrand as the paper has it, float64; one-hot x and z, and p, all [..., V]."""
    number = clean.shape[-1]
    bar = lambda law: number * signal * law + 1 - signal
    at = lambda law: np.sum(bar(law) * seen, axis=-1, keepdims=True)
    ratio = bar(clean) / at(clean)
    parts = np.sum(ratio * np.log(ratio * at(guess) / bar(guess)), axis=-1)
    return (number / at(guess) - number / at(clean))[..., 0] + parts


def enumerated_bound(signals):
    """The NELBO of LAW under the exact network: summed over states, integrated by midpoints."""
    states = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    seen, clean = np.eye(VOCAB)[states], np.eye(VOCAB)[SEQUENCES][:, None]
    ask, total = jax.jit(lambda s: EXACT.features({}, jnp.asarray(seen, jnp.float32), s, s)), 0.0
    for signal in signals:
        guess = np.exp(np.asarray(ask(jnp.full(len(states), signal)), np.float64))
        law = np.sum((signal * clean + (1 - signal) / VOCAB) * seen, axis=-1).prod(axis=-1)
        sums = brackets(clean, seen, guess, signal).sum(axis=-1)
        total += LAW @ np.sum(law * sums, axis=1) / (VOCAB * signal)
    return total / len(signals) / LENGTH


def test_the_bound_of_the_exact_network_is_the_entropy():
    """Enumerated: -log p(x) itself, as the reverse process is exact; and the estimates of both."""
    signals = (np.arange(60) + 0.5) / 60
    np.testing.assert_allclose(enumerated_bound(signals), ENTROPY, rtol=0.01)
    nll = jax.jit(make_uniform_nll(EXACT, PLAIN))
    taus = (jnp.arange(512) + 0.5) / 512
    draws = [
        float(nll({}, law_batch(512, i), taus, jax.random.key(i))[0].mean()) for i in range(64)
    ]
    assert abs(np.mean(draws) - ENTROPY) < 4 * np.std(draws) / 8 < 0.1 * ENTROPY
    how = {"net": EXACT, "cfg": PLAIN, "rows": Rows(0, 512)}
    loss = jax.jit(lambda batch, key: uniform_loss({}, Frozen({}, {}), batch, key, **how)[0])
    values = [float(loss(law_batch(512, i), jax.random.key(i))) for i in range(64)]
    assert abs(np.mean(values) - ENTROPY) < 4 * np.std(values) / 8 < 0.2 * ENTROPY


def as_network(net):
    """A network whose features are the first argument itself: what `uniform_loss_at` reads."""
    return dataclasses.replace(
        net,
        features=lambda params, x, s, t, *, key=None: params["features"],
        readout=lambda params: (params["kernel"], params["bias"]),
    )


def written_out(params, tokens, seen, noise, weights, net):
    """The weighted integrand, with all logits at once and without any rule of its own."""
    raw = params["features"] @ params["kernel"] + params["bias"][None, None]
    logits = net.logit_softcap * jnp.tanh(raw / net.logit_softcap)
    logits = logits[..., : net.tokens or None]
    number, signal = logits.shape[-1], (1 - noise)[:, None, None]
    bar = number * signal * jax.nn.softmax(logits) + 1 - signal
    clean = number * signal * jax.nn.one_hot(tokens, number) + 1 - signal
    pick = lambda x: jnp.take_along_axis(x, seen[..., None], axis=-1)
    ratio = clean / pick(clean)
    parts = jnp.sum(ratio * jnp.log(ratio * pick(bar) / bar), axis=-1)
    value = (number / pick(bar) - number / pick(clean))[..., 0] + parts
    return jnp.sum(weights * value / (number * signal[..., 0]))


CASES = [(None, 0, 88), ("data-tensor", 0, 88), ("data-fsdp-tensor", 4, 80)]


@pytest.mark.parametrize("mesh, tile, number", CASES)
def test_tiled_loss_and_gradient_are_those_of_the_formula(mesh, tile, number):
    """Of 88 rows of the vocabulary the first 80 or all stand for tokens."""
    out, draw = readout(1), np.random.default_rng(0)
    shape = out.features.shape[:2]
    tokens = jnp.asarray(draw.integers(0, number, shape), jnp.int32)
    seen = jnp.where(jnp.asarray(draw.random(shape) < 0.5), tokens, (tokens + 3) % number)
    noise = jnp.asarray(draw.uniform(0.05, 0.95, shape[0]), jnp.float32)
    weights = jnp.asarray(draw.random(shape), jnp.float32)
    params = dict(zip(("features", "kernel", "bias"), out))
    how = {"loss_tile": tile, "parallel": mesh and parallel(mesh), "tokens": number % 88}
    net = as_network(head_network(**how))
    noisy = Noisy(jnp.zeros((*shape, 2)), seen, noise, jnp.ones(shape[0]))
    fn = lambda p: uniform_loss_at(p, tokens, noisy, weights, net=net, cfg=PLAIN)[0]
    found, slope = jax.jit(jax.value_and_grad(fn))(params)
    plain = functools.partial(written_out, tokens=tokens, seen=seen, noise=noise, net=net)
    want, wanted = jax.jit(jax.value_and_grad(plain))(params, weights=weights)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), slope, wanted)


def test_gaussian_states_have_the_signal_that_their_times_say():
    """The largest entry is the token with probability a + (1 - a) / V, at both ends of the range;
    softened at temperature 0.01 it is what the state shows."""
    number, table = 6, jnp.eye(6)
    times = gaussian_times(decoding_clock(number), 0.05, 0.94)
    tokens = jnp.full((2000, 4), 3)

    @jax.jit
    def drawn(at):
        ratio = times.ratio(at)
        pair = largest_entries(KEY, tokens, [ratio, 100.0 * ratio], number, 3)
        found = softened(KEY, tokens, ratio, 0.01, table, number=number, tile=3)
        return times.signal(at), found, pair

    for share, signal in ((0.0, 0.94), (1.0, 0.05)):
        told, (states, seen), pair = drawn(jnp.full(2000, share))
        np.testing.assert_allclose(told, signal, atol=1e-4)
        want = signal + (1 - signal) / number
        assert abs(float((seen == 3).mean()) - want) < 0.02
        shown = np.asarray(states[jnp.arange(2000)[:, None], jnp.arange(4)[None], seen])
        assert np.median(shown) > 0.99
        np.testing.assert_array_equal(pair[0], seen)
        assert (pair[1] == 3).all(), "the same noise at much more signal"
    # The rate is minus the slope of the signal, and integrates to the range.
    shares = jnp.linspace(0.0, 1.0, 401)
    rate = jax.jit(times.signal_and_rate)(shares)[1]
    np.testing.assert_allclose(np.trapezoid(rate, shares), 0.94 - 0.05, rtol=1e-3)


def test_the_curriculum_ends_and_is_the_bound_of_its_range_at_temperature_0():
    """Steps before its end are softened: at a small temperature the mean of the integrand over its
    range of signals, from 0.2 to 0.9; from its end on the loss is the plain one."""
    cfg = UniformDiffusionConfig(least_signal=0.2, most_signal=0.9, temperature=1e-6)
    times = gaussian_times(decoding_clock(VOCAB), 0.2, 0.9)
    how = {"net": EXACT, "cfg": cfg, "rows": Rows(0, 512), "softened_steps": 10, "times": times}

    @jax.jit
    def loss(batch, key, step):
        return uniform_loss({}, Frozen({}, {}, step=step), batch, key, **how)[0]

    late = how | {"softened_steps": 0}
    plain = jax.jit(lambda batch: uniform_loss({}, Frozen({}, {}), batch, KEY, **late)[0])
    batch = law_batch(512, 0)
    np.testing.assert_allclose(loss(batch, KEY, 10), plain(batch), rtol=1e-5)
    early = [float(loss(law_batch(512, i), jax.random.key(i), 9)) for i in range(24)]
    want = 0.7 * enumerated_bound(0.2 + 0.7 * (np.arange(12) + 0.5) / 12)
    assert abs(np.mean(early) - want) < 4 * np.std(early) / np.sqrt(24) < 0.2 * want
    with pytest.raises(UserError, match="expected the first to be less"):
        UniformDiffusionConfig(least_signal=0.95)
