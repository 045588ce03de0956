"""Autoguidance on exact flows, and written out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.samplers.base import nothing_given
from flm_jax.samplers.euler import EulerConfig, FlowMapConfig
from flm_jax.samplers.guidance import Weak, autoguided, plain
from flm_jax.samplers.guides import Guides
from helpers.networks import (
    FLOW,
    FREE,
    KEY,
    SEQUENCES,
    denoiser,
    draw,
    exact_network,
    matches,
    tiny_network,
)
from helpers.steering import steered, steered_program


def blended(share):
    """The exact denoiser, mixed with a law of independent tokens: `share` of the former.

    That law prefers the first sequence at its first position, the second at its last.
    """
    net, _ = exact_network()
    likely = jnp.asarray([[0.7, 0.5, 0.3], [0.3, 0.5, 0.7]])
    alone = jnp.einsum("kl,klv->lv", likely, jax.nn.one_hot(jnp.asarray(SEQUENCES), 5))[None]

    def features(params, x_s, s, t, *, key=None):
        right = jnp.exp(net.features(params, x_s / params["scale"], s, t))
        return jnp.log(share * right + (1 - share) * alone + 1e-30)

    table = lambda params: params["scale"] * jnp.eye(5)
    return dataclasses.replace(net, features=features, table=table)


def test_guidance_undoes_what_the_weak_network_does_worse():
    """Half and a quarter of the true denoiser: at eta = 3 their difference gives all of it back.

    The weak network has another table, so that both are asked about one eps only if the noise is
    drawn jointly.
    """
    exact, _ = exact_network()
    given = nothing_given(1000, 3)
    unit, double = {"scale": jnp.float32(1.0)}, {"scale": jnp.float32(2.0)}
    guides, extra = Guides(blended(0.25)), {"weak": double}
    valid = {}
    for eta in (1.0, 2.0, 3.0):
        cfg = EulerConfig(guidance=eta, weak="weak")
        run = steered_program(blended(0.5), 2, cfg, guides, exact=True)
        samples = run(KEY, unit, given, extra)
        found = matches(samples.tokens)
        valid[eta] = (found[0] | found[1]).mean()
        assert samples.calls is None if eta == 1.0 else int(samples.calls) == 4
    want = steered_program(exact, 2, EulerConfig(), Guides(), exact=True)(KEY, {}, given, {})
    np.testing.assert_array_equal(samples.tokens, want.tokens)
    np.testing.assert_allclose(samples.steps_confidence, want.steps_confidence, atol=1e-4)
    assert valid[1.0] < valid[2.0] - 0.02 and valid[2.0] < valid[3.0] == 1.0


def test_guidance_written_out():
    """One step of a dropout network: weak + eta (strong - weak), its argmax and its embedding."""
    net, params = tiny_network(False)
    y_0, tau = plain(net, params, FLOW, FREE).noise(KEY), jnp.full(3, 0.25)
    guided = autoguided(net, params, Weak(net), 3.0, FLOW, FREE)
    ask = jax.jit(lambda key: guided.ask(y_0, y_0, 0.4, (tau, tau), key))
    _, delta, (tokens, _) = ask(KEY)
    _, dropout_key = jax.random.split(KEY)
    probs = lambda **k: jax.nn.softmax(denoiser(net)(params, y_0, tau, tau, **k), axis=-1)
    want = 3.0 * probs() - 2.0 * probs(key=dropout_key)
    np.testing.assert_allclose(delta, want @ params["table"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(tokens, jnp.argmax(want, axis=-1))
    assert jnp.abs(ask(jax.random.key(9))[1] - delta).max() > 1e-2  # another mask


def test_weak_parameters_of_the_same_values_guide_nowhere():
    """delta + (eta - 1) (delta - delta): another eta, the same tokens."""
    net, params = tiny_network(True)
    got = steered(True, FlowMapConfig(guidance=5.0, weak="w"), extra={"weak": params})
    want = draw(net, params)
    np.testing.assert_array_equal(got.steps_tokens, want.steps_tokens)
    np.testing.assert_allclose(got.steps_confidence, want.steps_confidence, rtol=0, atol=1e-3)
