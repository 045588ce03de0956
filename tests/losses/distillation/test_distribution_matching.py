"""Distribution matching: its gradient, its weights, its contexts, and a law that it reaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.checkpoints.state import AuxiliaryState, new_state
from flm_jax.core.network import Network
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, expected_embedding, probabilities
from flm_jax.denoiser.posterior_input import posterior_embedding, with_posterior
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.gaussian_noise import embedded_noise
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Auxiliary, Frozen, token_weights
from flm_jax.losses.distillation.distribution_matching import (
    Answers,
    MatchingConfig,
    answers,
    auxiliary_loss,
    matching_loss,
    matching_loss_at,
)
from flm_jax.losses.distillation.renoised import start_and_end
from flm_jax.training.step import Companion, make_train_step
from helpers.one_position import FLOW, SHARES, SIZE, TABLE, exact_flow, learner
from helpers.routes import smooth_network
from helpers.two_tokens import (
    LATER,
    LAW,
    POINT,
    SIGNS,
    answer,
    divergence_of,
    hermite,
    normal,
    slopes,
)


def of_two(logit):
    """The network of (parameters, state [B, 1, 1]) -> half the difference of its two logits."""
    features = lambda p, y, s, t, *, key=None: logit(p, y)
    readout = lambda p: (jnp.asarray([[1.0, -1.0]]), jnp.zeros(2))
    return Network(lambda key: {}, features, readout, lambda p: SIGNS, 2, 1, 1, two_time=True)


def divergence(w):
    """KL(q_t || p_t) of the student with parameters w that reads pure noise, by quadrature."""
    y, share = hermite(16)
    means = jnp.tanh(answer(w, y))
    return divergence_of(lambda z: jnp.sum(share[None] * normal(z[:, None], means[None]), axis=1))


def exact_two():
    """Logits of z: the exact auxiliary's for the student with parameters POINT, the teacher's."""
    y, share = hermite(16)
    means = jnp.tanh(answer(POINT, y))

    def auxiliary(z):
        each = share[None] * normal(z[:, 0], means[None])
        up, down = (jnp.sum(each * (1 + sign * means)[None], axis=1) for sign in (1, -1))
        return 0.5 * (jnp.log(up) - jnp.log(down))[:, None, None]

    def teacher(z):
        up, down = LAW[0] * normal(z, 1.0), LAW[1] * normal(z, -1.0)
        return 0.5 * (jnp.log(up) - jnp.log(down))

    return auxiliary, teacher


def test_the_gradient_is_that_of_the_divergence():
    """Against finite differences of KL(q_t || p_t), all means by quadrature: within 1%."""
    auxiliary, teacher = exact_two()
    net = of_two(lambda p, z: answer(p["w"], z) if p else auxiliary(z))
    guide = (of_two(lambda p, z: teacher(z)), {})
    (y, share), (xi, weight) = hermite(16), hermite(16)
    y, xi, mask = jnp.repeat(y, 16), jnp.tile(xi, 16), jnp.outer(share, weight).reshape(-1, 1)
    times = jnp.full(256, LATER)

    def loss(w):
        out = forward(net, {"w": w}, y[:, None, None], times, times)
        mean = expected_embedding(out, SIGNS, net)
        z = LATER * jax.lax.stop_gradient(mean) + (1 - LATER) * xi[:, None, None]
        found = Answers(out, mean, z, 0 * times, times, times, mask, 1.0)
        return matching_loss_at(found, {}, guide, net=net, flow=FLOW, row_weighting="kl")[0]

    got = jax.grad(loss)(POINT)
    want = slopes(divergence)
    assert min(map(abs, want)) > 5e-3
    np.testing.assert_allclose(got, want, rtol=1e-2)


@pytest.mark.parametrize("weighting", ["kl", "distance"])
def test_the_weights_of_rows(weighting):
    """Against the formula with an inverse of E^T E, tokens [3, 4] out of 7 in 5 numbers."""
    net, params = smooth_network()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    other = jax.tree.map(lambda x: 0.9 * x, params)
    table = params["table"]
    keys = jax.random.split(jax.random.key(0), 3)
    mean, z = (jax.random.normal(k, (3, 4, 5)) for k in keys[:2])
    tau_s, tau_t = jnp.asarray([0.0, 0.2, 0.4]), jnp.asarray([0.3, 0.6, 0.9])
    mask = jax.random.bernoulli(keys[2], 0.6, (3, 4)).astype(jnp.float32)
    weights = token_weights(mask)
    found = Answers(Readout(mean, table, table), mean, z, tau_s, tau_t, tau_t, weights, mask.sum())

    def loss(mean):
        at = found._replace(mean=mean)
        how = {"net": net, "flow": FLOW, "row_weighting": weighting}
        return matching_loss_at(at, other, (net, params), **how)

    got, (gap, distance) = jax.grad(loss, has_aux=True)(mean)
    inverse = np.linalg.inv(np.asarray(table.T @ table, np.float64))
    told = lambda p, s: np.asarray(expected_embedding(forward(net, p, z, tau_t, s), table, net))
    right = told(params, tau_t)
    between, apart = told(other, tau_s) - right, np.asarray(mean) - right
    length = lambda x: np.sqrt(np.einsum("bld,de,ble->bl", x, inverse, x))
    np.testing.assert_allclose(gap, length(between), rtol=1e-4)
    np.testing.assert_allclose(distance, length(apart), rtol=1e-4)
    if weighting == "kl":
        factor = np.square(tau_t / (1 - tau_t))[:, None]
    else:
        mean_distance = (length(apart) * mask).sum(1) / np.asarray(mask).sum(1)
        factor = 1 / (mean_distance[:, None] + 1e-3)
    want = (factor * mask / mask.sum())[..., None] * (between @ inverse)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-6)


def test_times():
    """A share from noise, the others uniform, and the later time uniform after the first."""
    rows = 4096
    tau_s, tau_t = map(
        np.asarray, start_and_end(jax.random.key(1), FLOW, rows, Rows(0, rows), 0.25)
    )
    assert abs((tau_s == 0).mean() - 0.25) < 2e-3
    later = np.sort(tau_s[tau_s > 0]) / 0.995
    np.testing.assert_allclose(later, np.linspace(0, 1, len(later)), atol=2e-3)
    share = np.sort((tau_t - tau_s) / (0.995 - tau_s))
    np.testing.assert_allclose(share, np.linspace(0, 1, rows), atol=2e-3)
    assert abs(np.corrcoef(tau_s, (tau_t - tau_s) / (0.995 - tau_s))[0, 1]) < 0.02
    all_noise, _ = start_and_end(jax.random.key(1), FLOW, rows, Rows(0, rows), 1.0)
    np.testing.assert_array_equal(all_noise, 0.0)


@pytest.mark.parametrize("weighting", ["kl", "distance"])
def test_a_law_of_one_position_is_reached(weighting):
    """In one call from noise: sure of its tokens, whose shares are right to .05 in all."""
    net, flow, optimizer = learner(), exact_flow(), optax.adam(5e-3)
    cfg = MatchingConfig(from_noise=0.5, row_weighting=weighting)
    bound = {"net": net, "flow": FLOW, "cfg": cfg, "teacher": flow}
    step = make_train_step(
        lambda *args: matching_loss(*args, **bound),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3)),
        seed=0,
        microbatches=1,
        ema_decay=0.98,
        companion=Companion(
            Auxiliary(lambda *args: auxiliary_loss(*args, **bound), 4, 10, 0.0), optimizer
        ),
    )
    own, other = net.init(jax.random.key(0)), net.init(jax.random.key(1))
    state = new_state(
        own,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3)),
        None,
        AuxiliaryState(other, optimizer.init(other)),
    )

    def one(state, key):
        tokens = jax.random.categorical(key, jnp.log(SHARES), shape=(1280, 1))
        return step(state, {}, {"tokens": tokens, "mask": jnp.ones((1280, 1))})

    keys = jax.random.split(jax.random.key(3), 600)
    state, _ = jax.jit(lambda state: jax.lax.scan(one, state, keys))(state)

    def written(params):
        y = embedded_noise(jax.random.key(4), TABLE, (20_000, 1))
        zeros = jnp.zeros(20_000)
        probs = probabilities(forward(net, params, y, zeros, zeros + 1), net)[:, 0]
        shares = jnp.bincount(jnp.argmax(probs, axis=-1), length=SIZE) / 20_000
        return float(jnp.abs(shares - SHARES).sum() / 2), float(probs.max(axis=-1).mean())

    before, after = written(own), written(state.ema_params)
    assert before[0] > 0.1 and after[0] < 0.05
    assert before[1] < 0.8 and after[1] > 0.93


def test_clean_positions_are_clean_in_all_three_networks():
    """States at time 1 that are the tokens' embeddings, each network's own; no weight in losses."""
    net, params = smooth_network()
    seen = []

    def features(p, y, s, t, *, key=None):
        seen.append((y, s, t))
        return y @ p["mix"]

    net = Network(lambda key: {}, features, net.readout, net.table, 7, 5, 4, two_time=True)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    theirs = params | {"table": params["table"][::-1]}
    tokens = jax.random.randint(jax.random.key(0), (6, 4), 0, 7)
    clean = jax.random.bernoulli(jax.random.key(1), 0.5, (6, 4))
    batch = {"tokens": tokens, "mask": jnp.ones((6, 4)), "prompt": clean}
    cfg = MatchingConfig()
    how = {"net": net, "flow": onehot_flow(decoding_clock(7)), "cfg": cfg, "teacher": net}
    frozen = Frozen(theirs, params, other=params)

    def loss(params, batch):
        return matching_loss(params, frozen, batch, jax.random.key(2), Rows(0, 6), **how)

    _, metrics = loss(params, batch)
    for (y, s, t), table in zip(seen, (params, theirs, theirs), strict=True):
        np.testing.assert_allclose(y[clean], table["table"][tokens][clean], atol=1e-6)
        assert (np.abs(y - table["table"][tokens])[~clean].max(-1) > 1e-3).all()
        assert (s[clean] == 1).all() and (t[clean] == 1).all() and (s[~clean] < 1).all()
    assert float(metrics["counted"]) == float((~clean).sum())
    gradient = jax.grad(lambda p, b: loss(p, b)[0])
    got, want = (gradient(params, b) for b in (batch, batch | {"mask": ~clean}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    value, _ = auxiliary_loss(params, frozen, batch, jax.random.key(2), Rows(0, 6), **how)
    assert np.isfinite(value)


def test_posteriors_are_read_with_the_teachers_table():
    """By auxiliary and teacher, at the time of z; by the student with its own, half-way to 1."""
    net, params = smooth_network()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    theirs, seen = params | {"table": params["table"][::-1]}, []
    flow = onehot_flow(decoding_clock(7))

    def features(p, x, s, t, *, key=None):
        seen.append(x)
        return x @ p["mix"]

    net = dataclasses.replace(net, features=features)
    net = with_posterior(net, flow, read=True, skip=False, dtype="float32")
    batch = {"tokens": jnp.zeros((6, 4), jnp.int32), "mask": jnp.ones((6, 4))}
    rows, key = Rows(0, 6), jax.random.key(2)
    how = {"net": net, "flow": flow, "cfg": MatchingConfig()}
    found = answers(params, (net, theirs), batch, key, rows, **how)
    seen.clear()
    matching_loss(params, Frozen(theirs, {}, other=params), batch, key, rows, teacher=net, **how)
    want = posterior_embedding(net, theirs, found.z, found.tau_t)
    for x in seen[1:]:
        np.testing.assert_allclose(x, want, rtol=1e-4, atol=1e-5)
    assert len(seen) == 3 and np.abs(seen[0] - want).max() > 0.1
    found = answers(params, (net, theirs), batch, jax.random.split(key)[0], rows, **how)
    seen.clear()
    auxiliary_loss(params, Frozen(theirs, {}, other=params), batch, key, rows, teacher=net, **how)
    want = posterior_embedding(net, theirs, found.z, found.tau_t)
    np.testing.assert_allclose(seen[1], want, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_is_drawn_to_the_mean_answer():
    """Its loss is the cross entropy to the student's probabilities, and none flows to these."""
    net, params = smooth_network()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    own = jax.tree.map(lambda x: 0.5 * x, params)
    tokens = jnp.zeros((6, 4), jnp.int32)
    batch, rows, key = {"tokens": tokens, "mask": jnp.ones((6, 4))}, Rows(0, 6), jax.random.key(5)
    how = {"net": net, "flow": onehot_flow(decoding_clock(7)), "cfg": MatchingConfig()}
    value, _ = auxiliary_loss(
        own, Frozen(params, params, other=params), batch, key, rows, teacher=net, **how
    )
    found = answers(params, (net, params), batch, jax.random.split(key)[0], rows, **how)
    out = forward(net, own, found.z, found.tau_t, found.tau_s)
    ce = -jnp.sum(probabilities(found.out, net) * jnp.log(probabilities(out, net)), axis=-1)
    np.testing.assert_allclose(value, ce.mean(), rtol=1e-5)


def test_where_nothing_counts_the_texts_are_the_datas():
    """Padding holds the data's tokens, as the teacher saw it in training, not what is untrained."""
    net, params = smooth_network()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    tokens = jax.random.randint(jax.random.key(0), (6, 4), 0, 7)
    valid = jnp.arange(4)[None] < jnp.asarray([[1], [2], [3], [4], [4], [1]])
    how = {"net": net, "flow": onehot_flow(decoding_clock(7)), "cfg": MatchingConfig()}
    batch = {"tokens": tokens, "mask": valid}
    found = answers(params, (net, params), batch, jax.random.key(1), Rows(0, 6), **how)
    same = np.isclose(found.mean, params["table"][tokens], atol=1e-6).all(axis=-1)
    np.testing.assert_array_equal(same, ~valid)
