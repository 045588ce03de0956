"""Squared errors, predictions that are no probabilities, and training without the clock."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import tiny_config

from flm_jax.build.families.registry import family, make_objective
from flm_jax.build.flow import make_clock
from flm_jax.build.model import abstract_params, make_network
from flm_jax.build.sampler import Options
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.denoiser.head import embed_probs
from flm_jax.flows.clocks import decoding_clock, identity_clock, t_to_tau, tau_to_t
from flm_jax.flows.flow_map import velocity
from flm_jax.flows.noising import states_from_onehot
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.losses.regression import RegressionConfig, regression_loss
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import sample_euler_from
from flm_jax.samplers.onehot import sample_onehot, sample_onehot_from

V, L, D, B = 7, 4, 5, 6
KEY = jax.random.key(3)
TOKENS = jax.random.randint(jax.random.key(1), (B, L), 0, V)
BATCH = {"tokens": TOKENS, "mask": (jnp.arange(L)[None] < jnp.array([4, 4, 2, 4, 0, 3])[:, None])}
CLOCK = decoding_clock(V)


def linear_net(tile=0):
    """Features are the state and the time; a small head, enough to tell outputs apart."""
    kernel = jax.random.normal(jax.random.key(5), (D + 1, V))

    def features(params, x_s, s, t, *, key=None):
        del t, key
        time = jnp.broadcast_to(s[:, None, None], (*x_s.shape[:2], 1))
        return jnp.concatenate([x_s, time], axis=-1)

    return Network(
        init=lambda key: {"table": jax.random.normal(key, (V, D)), "kernel": kernel},
        features=features,
        readout=lambda params: (params["kernel"], jnp.linspace(-1.0, 1.0, V)),
        table=lambda params: params["table"],
        vocab_size=V,
        dim=D + 1,
        max_length=L,
        logit_softcap=3.0,
        loss_tile=tile,
    )


NET = linear_net()
PARAMS = NET.init(KEY)


def by_hand(params, prediction):
    """The loss with every array held, from its definition."""
    time_key, noise_key, _ = jax.random.split(KEY, 3)
    rows = Rows(0, B)
    tau = stratified_uniform(time_key, B, rows)
    t, noise_key = tau_to_t(CLOCK, tau), rows.fold(noise_key)
    clean = jax.nn.one_hot(TOKENS, V)
    eps = jax.random.normal(noise_key, (B, L, V))
    (y_t,) = states_from_onehot(eps, t, TOKENS, params["table"])
    raw = (
        NET.features(params, y_t, tau, tau) @ params["kernel"] + jnp.linspace(-1, 1, V)[None, None]
    )
    got = jax.nn.softmax(3.0 * jnp.tanh(raw / 3.0)) if prediction == "probabilities" else raw
    x_t = t[:, None, None] * clean + (1 - t)[:, None, None] * eps
    wanted = velocity(x_t, clean, t) if prediction == "velocity" else clean
    mask = BATCH["mask"].astype(jnp.float32)
    return jnp.sum(jnp.sum(jnp.square(got - wanted), axis=-1) * mask) / jnp.sum(mask)


@pytest.mark.parametrize(
    ("prediction", "tile"),
    [("probabilities", 0), ("probabilities", 3), ("denoiser", 0), ("velocity", 0)],
)
def test_squared_errors_are_their_definition(prediction, tile):
    """Values and gradients within 1e-4, whole and by tiles."""
    cfg, net = RegressionConfig(prediction, "onehot"), linear_net(tile)

    def loss(params):
        settings = dict(net=net, clock=CLOCK, cfg=cfg, rows=Rows(0, B))
        return regression_loss(params, BATCH, KEY, **settings)[0]

    want, wanted = jax.jit(jax.value_and_grad(lambda p: by_hand(p, prediction)))(PARAMS)
    got, grads = jax.jit(jax.value_and_grad(loss))(PARAMS)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_states_in_both_spaces_take_the_same_path():
    """The sampler in R^V agrees with that in R^D where the output is a softmax."""
    x_0 = jax.random.normal(KEY, (B, L, V))
    given = Given(TOKENS, jnp.arange(L)[None] == jnp.zeros((B, 1), int))
    settings = dict(clock=CLOCK, steps=5, given=given)
    wide = sample_onehot_from(x_0, NET, PARAMS, prediction="probabilities", **settings)
    narrow = sample_euler_from(embed_probs(x_0, PARAMS["table"]), NET, PARAMS, **settings)
    np.testing.assert_array_equal(wide.steps_tokens, narrow.steps_tokens)
    np.testing.assert_allclose(wide.steps_confidence, narrow.steps_confidence, atol=1e-4)
    assert (wide.tokens[:, 0] == TOKENS[:, 0]).all()


@pytest.mark.parametrize("prediction", ["denoiser", "velocity"])
def test_the_exact_field_of_one_sequence_is_carried_to_it(prediction):
    """For a law of one sequence D is its one-hot vector, and b = (D - x) / (1 - t)."""
    clean = jax.nn.one_hot(TOKENS, V)

    def features(params, y_t, s, t, *, key=None):
        time = tau_to_t(CLOCK, s)
        return clean if prediction == "denoiser" else velocity(y_t, clean, time)

    net = Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(V), jnp.zeros(V)),
        table=lambda params: jnp.eye(V),
        vocab_size=V,
        dim=V,
        max_length=L,
        logit_softcap=0.1,  # which these outputs must not pass through
    )
    settings = dict(clock=CLOCK, steps=3, given=nothing_given(B, L), prediction=prediction)
    found = sample_onehot(KEY, net, {}, **settings)
    np.testing.assert_array_equal(found.steps_tokens, jnp.tile(TOKENS[None], (3, 1, 1)))
    np.testing.assert_allclose(found.steps_confidence, 1.0, atol=1e-4)


def test_identity_clock_is_the_identity():
    t = jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(t_to_tau(identity_clock(), t), t, atol=1e-6)
    np.testing.assert_allclose(tau_to_t(identity_clock(), t), t, atol=1e-6)
    slope = jax.jvp(lambda s: tau_to_t(identity_clock(), s), (t[1:-1],), (jnp.ones(9),))[1]
    np.testing.assert_allclose(slope, 1.0, atol=1e-5)


def ablation(**objective):
    config = tiny_config()
    config.model.vocab_size = 4
    for key, value in objective.items():
        config.objective[key] = value
    return check(config)


@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({}, "nll_nats_per_token"),
        ({"form": "mse"}, "squared_per_token"),
        ({"prediction": "denoiser"}, "squared_per_token"),
        ({"prediction": "velocity", "noise": "onehot", "clock": "identity"}, "squared_per_token"),
    ],
)
def test_configurations_make_their_objective_and_sampler(settings, metric):
    config = ablation(**settings)
    net, clock = make_network(config), make_clock(config, 4)
    objective = make_objective(config, net, clock)
    params = abstract_params(net)
    batch = {k: jax.ShapeDtypeStruct((8, 2), jnp.int32) for k in ("tokens", "mask")}
    shape = lambda p, b: objective(p, None, b, KEY, Rows(0, 8))
    assert list(jax.eval_shape(shape, params, batch)[1]) == [metric]
    sampler = family(config).sampler(config, net, clock, 3, Options())
    assert jax.eval_shape(sampler, KEY, params, nothing_given(2, 2)).tokens.shape == (2, 2)
    has_probabilities = settings.get("prediction", "probabilities") == "probabilities"
    assert (family(config).row_nll(config, net, clock) is not None) == has_probabilities
    assert (len(clock.t) == 2) == (settings.get("clock") == "identity")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "noise"}, "unknown config.objective.prediction 'noise'"),
        ({"prediction": "denoiser", "form": "ce"}, "no distribution, so that there is no cross"),
        ({"prediction": "velocity"}, "set config.objective.noise = 'onehot'"),
        ({"prediction": "denoiser", "name": "masked"}, "belongs to objective denoising"),
    ],
)
def test_impossible_ablations_are_refused(settings, message):
    config = ablation(**settings)
    with pytest.raises(UserError, match=message):
        make_objective(config, make_network(config), CLOCK)
    with pytest.raises(UserError, match="unknown config.objective.clock"):
        make_clock(ablation(clock="t"), 4)


def test_nothing_else_is_read_from_a_plain_flow():
    """Older workdirs lack the new keys."""
    config = ablation()
    for key in ("clock", "prediction"):
        del config["objective"][key]
    assert len(make_clock(config, 4).t) > 2
    assert family(config).row_nll(config, make_network(config), CLOCK) is not None
