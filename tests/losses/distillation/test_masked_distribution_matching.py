"""Distribution matching on the masked bridge: gradient, auxiliary, clean context, a law reached."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.checkpoints.state import AuxiliaryState, new_state
from flm_jax.core.network import Network
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding, probabilities
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Auxiliary, Frozen
from flm_jax.losses.distillation.distribution_matching import (
    Answers,
    Blind,
    auxiliary_loss,
    matching_loss,
    matching_loss_at,
)
from flm_jax.losses.distillation.masked_distribution_matching import (
    MaskedMatchingConfig,
    masked_answers,
)
from flm_jax.training.step import Companion, make_train_step
from helpers.bridge_map import ANCHOR, PATH, RIGHT, TABLE, bridge_flow, denoised
from helpers.two_tokens import POINT, answer, slopes

FLOW = bridge_flow()
FIRST = (0.8, 0.3)  # law of token 0 at the hidden position, after a context of token 0 and of 1
BLURRED = 0.55  # the same after a context that cannot be read
LATER = 0.02  # time of the noised answers: signal over noise is sqrt(t / (1-t)) / sigma = 0.7
WHOLE = {"hide_special": True, "whole": 1.0}


def of_two(logit, **more):
    """The network of (parameters, states, tau_s) -> half the difference of two logits [B, 2]."""
    both = lambda p, y, s, t, *, key=None: jnp.stack([logit(p, y, s), -logit(p, y, s)], axis=-1)
    readout = lambda p: (jnp.eye(2), jnp.zeros(2))
    anchor = lambda p: jnp.full((2, 1), ANCHOR)
    return Network(lambda key: {}, both, readout, lambda p: TABLE, 2, 1, 2, anchor=anchor, **more)


def law_of(y, blurred=BLURRED):
    """Law of the hidden token by what is seen of the context: +1, -1, or noise."""
    context = y[:, 0, 0]
    return jnp.where(context == 1.0, FIRST[0], jnp.where(context == -1.0, FIRST[1], blurred))


def half_odds(y, s):
    """Half the log odds of the tokens given the state at s: the exact masked flow."""
    _, b, c = PATH.coefficients(FLOW.t(s))
    z = (y[..., 0] - (b * ANCHOR)[:, None]) / c[:, None]
    u = PATH.odds(FLOW.t(s))[:, None]
    return jnp.arctanh(jnp.clip(denoised(z, u, law_of(y)[:, None]), -0.999999, 0.999999))


TEACHER = of_two(lambda p, y, s: half_odds(y, s))


def hermite(number):
    points, weights = np.polynomial.hermite_e.hermegauss(number)
    return jnp.asarray(points), jnp.asarray(weights / weights.sum())


def log_density(z, mean):
    """Log density of the noised answer at LATER, written out from the bridge."""
    variance = 0.2**2 * LATER * (1 - LATER)
    gap = z - LATER * mean - (1 - LATER) * ANCHOR
    return -(gap**2) / (2 * variance) - 0.5 * jnp.log(2 * jnp.pi * variance)


def density(z, mean):
    return jnp.exp(log_density(z, mean))


def mixed(z, first):
    return first * density(z, 1.0) + (1 - first) * density(z, -1.0)


@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_the_gradient_is_that_of_the_divergence(guidance):
    """Of mean log q - (1+w) log p(. | context) + w log p(. | corrupted), by quadrature: to 1%."""
    (y, share), (xi, weight) = hermite(16), hermite(24)
    z = jnp.linspace(0.2, 0.6, 4001)
    wanted = (1 + guidance) * jnp.log(mixed(z, FIRST[0])) - guidance * jnp.log(mixed(z, BLURRED))

    def divergence(w):
        means = jnp.tanh(answer(w, y))
        q = jnp.sum(share[None] * density(z[:, None], means[None]), axis=1)
        return jnp.sum(q * (jnp.log(q) - wanted)) * (z[1] - z[0])

    def exact(z):
        """Half the log odds of the answer that was noised to z [B, 2]."""
        means = jnp.tanh(answer(POINT, y))
        own, of = jnp.log(share)[None, None], means[None, None]
        each = jax.nn.softmax(own + log_density(z[..., None], of), axis=-1)
        return jnp.arctanh(jnp.sum(each * of, axis=-1))

    net = of_two(
        lambda p, z, s: answer(p["w"], z[..., 0]) if p else exact(z[..., 0]), two_time=True
    )
    noise, xi = jnp.repeat(y, 24), jnp.tile(xi, 16)
    weights = jnp.outer(share, weight).reshape(-1, 1) * jnp.asarray([[0.0, 1.0]])
    times = jnp.full(len(noise), LATER)
    tau = FLOW.tau(times)
    context, hidden = jnp.ones((len(noise), 1, 1)), jnp.asarray([False, True])[None, :, None]

    def loss(w):
        seen = jnp.concatenate([context, noise[:, None, None]], axis=1)
        out = forward(net, {"w": w}, seen, tau, tau)
        mean = expected_embedding(out, TABLE, net)
        _, _, c = PATH.coefficients(times)
        at = PATH.at(times, jax.lax.stop_gradient(mean), 0.0, ANCHOR)
        at = jnp.where(hidden, at + c[:, None, None] * xi[:, None, None], context)
        # A context that is neither token's embedding.
        blind = Blind(jnp.where(hidden, at, 0.5), tau, 1 + guidance, product=False)
        found = Answers(out, mean, at, tau, tau, times, weights, 1.0, blind if guidance else None)
        how = {"net": net, "flow": FLOW, "row_weighting": "kl"}
        return matching_loss_at(found, {}, (TEACHER, {}), **how)[0]

    got, want = jax.jit(jax.grad(loss))(POINT), slopes(jax.jit(divergence))
    assert min(map(abs, want)) > 2e-3
    np.testing.assert_allclose(got, want, rtol=1e-2)


def batch_of(rows, seed=0):
    """A context token and one that follows its law; the first is always clean."""
    rng = np.random.default_rng(seed)
    context = rng.integers(0, 2, rows)
    token = rng.random(rows) >= np.asarray(FIRST)[context]
    prompt = np.broadcast_to([True, False], (rows, 2))
    tokens = jnp.asarray(np.stack([context, token], axis=1), jnp.int32)
    return {"tokens": tokens, "mask": jnp.ones((rows, 2)), "prompt": jnp.asarray(prompt)}


def test_the_auxiliary_is_drawn_to_the_mean_answer():
    """At E[P | z, context], for every s and t, its gradient is but noise; beside it, it is not."""
    points, share = hermite(12)
    rows = 32768
    student = lambda y, s: 0.3 + 1.5 * jnp.tanh(4 * (y - 0.4)) + 0.5 * s

    def logit(p, y, tau_t, tau_s):
        """With "wrong": the exact auxiliary; without: the student."""
        if "wrong" not in p:
            return student(y[..., 0], tau_t[:, None])
        s, t = FLOW.t(tau_s), FLOW.t(tau_t)
        law = law_of(y)[:, None, None]
        column, row = lambda x: x[:, None, None], lambda x: x[None, None]
        a, b, c = (column(x) for x in PATH.coefficients(s))
        states = jnp.concatenate([a * sign + b * ANCHOR + c * row(points) for sign in (1, -1)], 1)
        weights = jnp.concatenate([law * row(share), (1 - law) * row(share)], axis=1)
        means = jnp.tanh(student(states, column(tau_s)))
        a, b, c = (column(x) for x in PATH.coefficients(t))
        away = (column(y[:, 1, 0]) - a * means - b * ANCHOR) / c
        each = weights * jax.nn.softmax(-0.5 * away**2, axis=(1, 2))
        mean = jnp.sum(each * means, axis=(1, 2)) / jnp.sum(each, axis=(1, 2))
        exact = jnp.arctanh(mean)[:, None] * jnp.ones((1, 2))
        return exact + p["wrong"][0] + p["wrong"][1] * tau_t[:, None]

    def features(p, y, s, t, *, key=None):
        found = logit(p, y, s, t)
        return jnp.stack([found, -found], axis=-1)

    net = dataclasses.replace(TEACHER, features=features, two_time=True)
    cfg = MaskedMatchingConfig(**WHOLE)
    how = {"net": net, "flow": FLOW, "cfg": cfg, "teacher": TEACHER, "draw": masked_answers}
    frozen = Frozen({}, {}, FLOW.times._now)
    batch, key = batch_of(rows), jax.random.key(0)

    def loss(wrong):
        return auxiliary_loss({"wrong": wrong}, frozen, batch, key, Rows(0, rows), **how)[0]

    gradient = jax.jit(jax.grad(loss))
    assert np.abs(gradient(jnp.zeros(2))).max() < 4e-3
    assert np.abs(gradient(jnp.asarray([0.2, 0.0]))).max() > 4e-2


def test_clean_positions_are_clean_in_all_three_networks():
    """Prompts, what is not hidden and padding; guidance alone sees noise there, one time a row."""
    seen, rows = [], 16

    def features(p, y, s, t, *, key=None):
        seen.append((y, s, t))
        return jnp.concatenate([y, -y], axis=-1) * p["scale"]

    net = dataclasses.replace(TEACHER, features=features, two_time=True, max_length=4)
    net = dataclasses.replace(net, anchor=lambda p: jnp.full((4, 1), ANCHOR))
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(0, 2, (rows, 4)))
    valid = jnp.asarray(np.arange(4)[None] < rng.integers(3, 5, (rows, 1)))
    prompt = jnp.broadcast_to(jnp.arange(4) == 0, (rows, 4))
    batch = {"tokens": tokens, "mask": valid, "prompt": prompt}
    cfg = MaskedMatchingConfig(hide_special=True, context_guidance=1.0)
    how = {"net": net, "flow": FLOW, "cfg": cfg}
    params, key = {"scale": jnp.ones(())}, jax.random.key(1)
    frozen = Frozen(params, {}, FLOW.times._now, other=params)
    found = masked_answers(params, (net, params), batch, key, Rows(0, rows), **how)
    hidden = np.asarray(found.weights) > 0
    assert hidden.any(axis=1).all() and not (hidden & np.asarray(prompt | ~valid)).any()
    assert (~hidden & np.asarray(valid & ~prompt)).any()
    seen.clear()
    more = {"teacher": net, "draw": masked_answers}
    loss, metrics = matching_loss(params, frozen, batch, key, Rows(0, rows), **how, **more)
    assert len(seen) == 4 and float(metrics["counted"]) == rows
    for i, (y, s, t) in enumerate(seen):
        assert s.shape == t.shape == (rows,)
        same = np.asarray(y == TABLE[tokens])[..., 0]
        assert not same[hidden].any() and (same[~hidden].all() if i < 3 else not same.any())
    np.testing.assert_array_equal(seen[3][0][hidden], found.z[hidden])
    np.testing.assert_array_equal(found.mean[~hidden], TABLE[tokens][~hidden])
    assert (seen[0][2] == 1).all() and np.isfinite(loss)
    # The gradient is that of the hidden positions alone.
    more = {"net": net, "flow": FLOW, "row_weighting": "kl"}
    of = lambda mean: found._replace(mean=mean)
    loss = lambda mean: matching_loss_at(of(mean), params, (net, params), **more)[0]
    slope = jax.grad(loss)(found.mean)
    assert (slope[~hidden] == 0).all()


def test_answers_are_put_on_the_bridge_again():
    """z given P E: mean (1-t) m + t P E, variance sigma^2 t (1-t), in whatever positions."""
    rows = 20_000
    net = of_two(lambda p, y, s: jnp.full(y.shape[:2], 0.4), two_time=True)
    cfg = MaskedMatchingConfig(**WHOLE, from_noise=0.5)
    how = {"net": net, "flow": FLOW, "cfg": cfg}
    made = functools.partial(masked_answers, {}, (TEACHER, {}), **how)
    found = jax.jit(lambda key: made(batch_of(rows), key, Rows(0, rows)))(jax.random.key(2))
    np.testing.assert_allclose(found.mean[:, 1], np.tanh(0.4), rtol=1e-5)
    t = np.asarray(found.t)
    away = np.asarray(found.z)[:, 1, 0] - (1 - t) * ANCHOR - t * np.tanh(0.4)
    away = away / (0.2 * np.sqrt(t * (1 - t)))
    assert abs(away.mean()) < 0.03 and abs(away.std() - 1) < 0.03
    assert abs((np.asarray(found.tau_s) == 0).mean() - 0.5) < 1e-3
    assert (found.tau_s <= found.tau_t).all()


def learner(width=32):
    """Two hidden layers over the state, whitened, the context and both times."""

    def init(key):
        keys = jax.random.split(key, 3)
        draw = lambda k, n, m: jax.random.normal(k, (n, m)) / n**0.5
        hidden = {"one": draw(keys[0], 6, width), "two": draw(keys[1], width, width)}
        return hidden | {"out": draw(keys[2], width, 1)}

    def logit(p, y, s, t):
        _, b, c = PATH.coefficients(FLOW.t(s))
        z = (y[:, 1, 0] - b * ANCHOR) / c
        read = [z, jnp.tanh(z), y[:, 0, 0], s, t, jnp.ones_like(z)]
        h = jnp.tanh(jnp.tanh(jnp.stack(read, axis=-1) @ p["one"]) @ p["two"])
        return h @ p["out"] * jnp.ones((1, 2))

    def features(p, y, s, t, *, key=None):
        found = logit(p, y, s, t)
        return jnp.stack([found, -found], axis=-1)

    return dataclasses.replace(TEACHER, init=init, features=features, two_time=True)


def test_the_law_of_a_hidden_position_is_reached():
    """In one call from noise: sure of its tokens, whose shares after each context are right."""
    net, rows = learner(), 640
    cfg = MaskedMatchingConfig(**WHOLE, from_noise=0.5)
    how = {"net": net, "flow": FLOW, "cfg": cfg, "teacher": TEACHER, "draw": masked_answers}
    tracked = FLOW.times._now
    of = lambda loss: (
        lambda p, frozen, *rest: loss(
            p, frozen._replace(teacher=RIGHT, tracked=tracked), *rest, **how
        )
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
    beside = Companion(Auxiliary(of(auxiliary_loss), 4, 10, 0.0), optax.adam(5e-3))
    step = make_train_step(
        of(matching_loss), optimizer, seed=0, microbatches=1, ema_decay=0.98, companion=beside
    )
    own, other = net.init(jax.random.key(0)), net.init(jax.random.key(1))
    held = AuxiliaryState(other, beside.optimizer.init(other))
    state = new_state(own, optimizer, None, held)

    def one(state, key):
        context_key, token_key = jax.random.split(key)
        context = jax.random.bernoulli(context_key, 0.5, (rows,)).astype(jnp.int32)
        first = jnp.asarray(FIRST)[context]
        token = (jax.random.uniform(token_key, (rows,)) >= first).astype(jnp.int32)
        tokens = jnp.stack([context, token], axis=1)
        prompt = jnp.broadcast_to(jnp.asarray([True, False]), (rows, 2))
        return step(state, {}, {"tokens": tokens, "mask": jnp.ones((rows, 2)), "prompt": prompt})

    keys = jax.random.split(jax.random.key(3), 400)
    state, _ = jax.jit(lambda state: jax.lax.scan(one, state, keys))(state)

    def written(params, context):
        number = 20_000
        tau = jnp.zeros(number)
        _, b, c = PATH.coefficients(FLOW.t(tau))
        y = b * ANCHOR + c * jax.random.normal(jax.random.key(4), (number,))
        y = jnp.stack([jnp.full(number, TABLE[context, 0]), y], axis=1)[..., None]
        probs = probabilities(forward(net, params, y, tau, tau + 1), net)[:, 1]
        return float((probs[:, 0] > 0.5).mean()), float(probs.max(axis=-1).mean())

    for context, first in enumerate(FIRST):
        before, after = written(own, context), written(state.ema_params, context)
        assert abs(before[0] - first) > 0.1 or before[1] < 0.8
        assert abs(after[0] - first) < 0.05 and after[1] > 0.93, (context, after)
