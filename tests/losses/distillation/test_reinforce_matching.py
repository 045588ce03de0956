"""Distribution matching by the score function: gradients by enumeration, and a law it reaches."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax.checkpoints.state import AuxiliaryState, new_state
from flm_jax.core.network import Network
from flm_jax.denoiser.draws import weighted_log_likelihood
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, probabilities
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.gaussian_noise import embedded_noise
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Auxiliary, Frozen
from flm_jax.losses.distillation.reinforce_matching import (
    ReinforceConfig,
    discrimination,
    discriminator_loss,
    policy_loss,
    reinforce_loss,
)
from flm_jax.losses.distillation.renoised import start_and_end
from flm_jax.models.transformer import single_output
from flm_jax.training.step import Companion, make_train_step
from helpers.one_position import FLOW, SHARES, exact_flow, learner
from helpers.one_position import TABLE as ONE_TABLE
from helpers.two_tokens import LATER, LAW, POINT, answer, divergence_of, hermite, normal, slopes

# Two positions of two tokens: four texts, drawn from the logits LOGITS [L, V].
LOGITS = jnp.asarray([[0.3, -0.5], [-0.2, 0.9]])
TEXTS = jnp.asarray(list(itertools.product(range(2), repeat=2)))
COSTS = jnp.asarray([3.0, 4.5, 2.0, 5.0])
DATA = jnp.asarray([0.4, 0.3, 0.2, 0.1])
TUPLES = jnp.asarray(list(itertools.product(range(4), repeat=3)))  # three draws of a row


def readable():
    """The network whose logits are its features, read in tiles of one position."""
    head = lambda p: (jnp.eye(2), jnp.zeros(2))
    return Network(lambda key: {}, None, head, None, 2, 2, 2, loss_tile=1)


def law(logits):
    """Probabilities of the four texts."""
    return jnp.exp(jax.nn.log_softmax(logits)[jnp.arange(2), TEXTS].sum(axis=1))


def estimates(costs, loss):
    """Gradient of a loss for each of TUPLES, [64, L, V], and the probability of each."""

    def one(index):
        def value(logits):
            out = Readout(logits[None], jnp.eye(2), jnp.zeros(2))
            found = TEXTS[index][:, None], costs[index][:, None]
            return loss(out, *found, jnp.ones((1, 2)), readable())

        return jax.grad(value)(LOGITS)

    return jax.vmap(one)(TUPLES), law(LOGITS)[TUPLES].prod(axis=1)


def mean(gradients, shares):
    return jnp.tensordot(shares, gradients, axes=1)


def test_the_gradient_is_unbiased_and_the_baseline_takes_variance_away():
    """Over all triples of texts: the gradient of the mean cost, at a fifth of the variance."""
    right = jax.grad(lambda logits: jnp.sum(law(logits) * COSTS))(LOGITS)
    plainly = lambda out, texts, costs, *how: weighted_log_likelihood(out, texts, costs / 3, *how)
    spread = []
    for loss in (policy_loss, plainly):
        found, shares = estimates(COSTS, loss)
        np.testing.assert_allclose(mean(found, shares), right, atol=2e-6)
        apart = jnp.square(found - right[None]).sum(axis=(1, 2))
        spread.append(float(jnp.sum(shares * apart)))
    assert spread[0] < 0.2 * spread[1]


def test_the_best_discriminator_gives_the_gradient_of_the_reverse_divergence():
    """Its logit is log p_data - log p_student, where the cross entropy of all pairs is least."""
    p, q = DATA, law(LOGITS)

    def entropy(logits):
        real, fake = (x.ravel() for x in jnp.meshgrid(jnp.arange(4), jnp.arange(4)))
        return discrimination(logits[real], logits[fake], p[real] * q[fake])

    best = jnp.log(p) - jnp.log(q)
    np.testing.assert_allclose(jax.grad(entropy)(best), 0.0, atol=1e-6)
    assert entropy(best) < min(entropy(best + 0.1 * step) for step in (*jnp.eye(4), -jnp.eye(4)[0]))
    right = jax.grad(lambda logits: jnp.sum(law(logits) * jnp.log(law(logits) / p)))(LOGITS)
    assert np.abs(right).max() > 0.05
    np.testing.assert_allclose(mean(*estimates(-best, policy_loss)), right, atol=2e-6)


def test_at_noised_states_it_is_that_of_the_noised_laws():
    """Of a student that reads noise, against differences of KL(q_t || p_t), all by quadrature."""
    (y, share), (xi, weight) = hermite(16), hermite(16)

    def noised(w):
        up = jnp.sum(share * jax.nn.sigmoid(2 * answer(w, y)))
        return lambda z: up * normal(z, 1.0) + (1 - up) * normal(z, -1.0)

    def logit(z):
        data = LAW[0] * normal(z, 1.0) + LAW[1] * normal(z, -1.0)
        return jnp.log(data) - jnp.log(noised(POINT)(z))

    # Rows: every state, every noise, every pair of tokens; both tokens have the row's noise.
    pairs = jnp.asarray(list(itertools.product(range(2), repeat=2)))
    at_y, at_xi, pair = (x.ravel() for x in jnp.meshgrid(*(jnp.arange(n) for n in (16, 16, 4))))
    texts = pairs[pair].T
    costs = -logit(LATER * (1.0 - 2.0 * texts) + (1 - LATER) * xi[at_xi][None])

    def loss(w):
        half = answer(w, y[at_y])
        out = Readout(jnp.stack([half, -half], axis=-1)[:, None], jnp.eye(2), jnp.zeros(2))
        drawn = jax.lax.stop_gradient(jax.nn.sigmoid(2 * half[None] * (1.0 - 2.0 * texts))).prod(
            axis=0
        )
        weights = (share[at_y] * weight[at_xi] * drawn)[:, None]
        return policy_loss(out, texts[..., None], costs, weights, readable())

    want = slopes(lambda w: divergence_of(noised(w)))
    assert min(map(abs, want)) > 1e-3
    np.testing.assert_allclose(jax.grad(loss)(POINT), want, rtol=1e-2, atol=1e-5)


def linear_pair(length=2, size=3):
    """A student with fixed logits, a discriminator linear in z, a teacher, and their parameters."""
    keys = jax.random.split(jax.random.key(0), 4)
    draw = lambda key, *shape: jax.random.normal(key, shape)
    table = draw(keys[0], size, size)

    def features(p, y, s, t, *, key=None):
        return y if "slope" in p else jnp.broadcast_to(p["logits"], y.shape)

    def readout(p):
        return (p["slope"], p["offset"]) if "slope" in p else (jnp.eye(size), jnp.zeros(size))

    net = Network(
        lambda key: {}, features, readout, lambda p: table, size, size, length, two_time=True
    )
    student, teacher = ({"logits": draw(key, length, size)} for key in keys[1:3])
    judge = {"slope": draw(keys[3], size, 1), "offset": jnp.asarray([0.7])}
    return net, student, judge, teacher, onehot_flow(decoding_clock(size))


def test_the_whole_loss_against_enumeration():
    """What the loss draws itself, within five standard errors; the teacher's term exactly."""
    net, student, judge, teacher, flow = linear_pair()
    rows, cfg = Rows(0, 512), ReinforceConfig(teacher_weight=0.0)
    batch = {"tokens": jnp.zeros((512, 2), jnp.int32), "mask": jnp.ones((512, 2))}
    frozen, how = Frozen(teacher, {}, other=judge), {"net": net, "flow": flow, "teacher": net}

    @jax.jit
    def gradient(key):
        loss = lambda p, cfg: reinforce_loss(p, frozen, batch, key, rows, cfg=cfg, **how)
        without, _ = jax.grad(loss, has_aux=True)(student, cfg)
        both, metrics = jax.grad(loss, has_aux=True)(student, ReinforceConfig())
        return without["logits"], both["logits"], metrics

    without, both, metrics = jax.vmap(gradient)(jax.random.split(jax.random.key(1), 48))
    taus = start_and_end(jax.random.key(2), flow, 4096, Rows(0, 4096), 0.0)
    a = float(flow.path.coefficients(flow.t(taus[1]))[0].mean())
    probs = lambda p: jax.nn.softmax(p["logits"])

    def cost(p):
        of_token = -(net.table(p) @ judge["slope"])[:, 0]
        return (a * jnp.mean(probs(p) @ of_token) - judge["offset"][0]) / 2

    def apart(p):
        return jnp.mean(jnp.sum(probs(p) * jnp.log(probs(p) / probs(teacher)), axis=1))

    error = without.std(axis=0) / 48**0.5
    right = jax.grad(cost)(student)["logits"]
    assert (np.abs(without.mean(axis=0) - right) < 5 * error).all()
    assert np.abs(right).max() > 20 * error.max()
    np.testing.assert_allclose(metrics["cost_nats_per_token"].mean(), cost(student), rtol=0.03)
    name = "teacher_divergence_nats_per_token"
    np.testing.assert_allclose(metrics[name], apart(student), rtol=1e-5)
    np.testing.assert_allclose(
        both - without, 0.5 * jax.grad(apart)(student)["logits"][None] + 0 * both, atol=1e-6
    )


def test_clean_and_padded_positions_are_the_datas():
    """In what the student and the discriminator read; no token of them is drawn or counts."""
    net, student, judge, teacher, flow = linear_pair(length=4, size=7)
    seen = []

    def features(p, y, s, t, *, key=None):
        jax.debug.callback(lambda *x: seen.append([np.asarray(v) for v in x]), y, s, t)
        return net.features(p, y, s, t)

    watched = dataclasses.replace(net, features=features)
    tokens = jax.random.randint(jax.random.key(3), (6, 4), 0, 7)
    clean = jax.random.bernoulli(jax.random.key(4), 0.4, (6, 4))
    mask = (jnp.arange(4)[None] < 3) & (jnp.arange(6) != 2)[:, None]
    batch = {"tokens": tokens, "mask": mask, "prompt": clean}
    how = {"net": watched, "flow": flow, "cfg": ReinforceConfig(), "teacher": net}
    frozen = Frozen(teacher, {}, other=judge)
    grad = jax.grad(reinforce_loss, has_aux=True)
    slope, metrics = grad(student, frozen, batch, jax.random.key(5), Rows(0, 6), **how)
    jax.effects_barrier()
    assert float(metrics["counted"]) == float((mask & ~clean).sum())
    assert len(seen) == 1 + 4
    embedded = np.asarray(net.table({})[tokens])
    for y, s, t in seen:
        np.testing.assert_allclose(y[clean], embedded[clean], atol=1e-6)
        assert (s[clean] == 1).all() and (t[clean] == 1).all() and (s[~clean] < 1).all()
    texts = np.stack([y for y, _, _ in seen[1:]])
    free = np.asarray(mask & ~clean)
    assert (np.ptp(texts, axis=0).max(axis=-1) > 1e-3)[free].any()
    # Padding: the same noised tokens of the data in all four texts.
    np.testing.assert_allclose(np.ptp(texts, axis=0)[~free], 0.0, atol=1e-6)
    other = batch | {"mask": mask & ~clean}
    again, _ = grad(student, frozen, other, jax.random.key(5), Rows(0, 6), **how)
    np.testing.assert_allclose(again["logits"], slope["logits"], rtol=1e-5, atol=1e-7)
    found = Frozen(teacher, {}, other=student)
    nothing = {"slope": jnp.zeros((7, 1)), "offset": jnp.zeros(1)}
    value, metrics = discriminator_loss(nothing, found, batch, jax.random.key(6), Rows(0, 6), **how)
    np.testing.assert_allclose(value, 2 * np.log(2), rtol=1e-6)
    assert float(metrics["discriminator_accuracy"]) == 0.5
    assert float(metrics["counted"]) == float((mask & ~clean).any(axis=1).sum()) == 4


def test_a_law_of_one_position_is_reached():
    """In one call from noise, by the discriminator alone: shares right to .05 in all."""
    net, optimizer = learner(), optax.adam(5e-3)
    cfg = ReinforceConfig(from_noise=0.5, teacher_weight=0.0)
    bound = {"net": net, "flow": FLOW, "cfg": cfg, "teacher": exact_flow()}
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3))
    step = make_train_step(
        lambda *args: reinforce_loss(*args, **bound),
        rule,
        seed=0,
        microbatches=1,
        ema_decay=0.98,
        companion=Companion(
            Auxiliary(lambda *args: discriminator_loss(*args, **bound), 2, 10, 0.0), optimizer
        ),
    )
    own, other = net.init(jax.random.key(0)), net.init(jax.random.key(1))
    other |= {"out": jnp.zeros((48, 1)), "bias": jnp.zeros(1)}
    state = new_state(own, rule, None, AuxiliaryState(other, optimizer.init(other)))

    def one(state, key):
        tokens = jax.random.categorical(key, jnp.log(SHARES), shape=(768, 1))
        return step(state, {}, {"tokens": tokens, "mask": jnp.ones((768, 1))})

    keys = jax.random.split(jax.random.key(3), 500)
    state, _ = jax.jit(lambda state: jax.lax.scan(one, state, keys))(state)

    def apart(params):
        y = embedded_noise(jax.random.key(4), ONE_TABLE, (20_000, 1))
        zeros = jnp.zeros(20_000)
        shares = probabilities(forward(net, params, y, zeros, zeros + 1), net)[:, 0].mean(axis=0)
        return float(jnp.abs(shares - SHARES).sum() / 2)

    assert apart(own) > 0.25
    assert apart(state.ema_params) < 0.05


def test_the_discriminators_parameters():
    """Those of the network, with one output that is 0 at first, and without its vocabulary."""
    params = {"table": jnp.ones((9, 4)), "head": {"kernel": jnp.ones((4, 9))}, "norm": jnp.ones(4)}
    found = single_output(params)
    assert found["head"]["kernel"].shape == (4, 1) and found["table"].shape == (1, 4)
    assert not found["head"]["kernel"].any() and found["norm"] is params["norm"]
