"""Forward renoising: tokens are drawn in every call, embedded, and noised afresh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import FlowMapConfig, RenoisingConfig
from flm_jax.samplers.flow import sample_flow
from flm_jax.samplers.registry import samplers_of
from helpers.one_position import FLOW, SHARES, exact_flow

ROWS = 20_000


def shares_of(net, cfg, steps, given=None):
    given = nothing_given(ROWS, 1) if given is None else given
    run = jax.jit(lambda key: sample_flow(key, {}, given, net=net, flow=FLOW, steps=steps, cfg=cfg))
    found = run(jax.random.key(3))
    each = [np.bincount(np.asarray(row)[:, 0], minlength=4) / ROWS for row in found.steps_tokens]
    return np.stack(each)


def test_an_exact_student_keeps_the_law_in_every_call():
    """The posterior of one position, however many calls; renoised means or likeliest do not."""
    net = dataclasses.replace(exact_flow(), two_time=True)
    found = shares_of(net, RenoisingConfig(), 4)
    assert found.shape == (4, 4) and np.abs(found - np.asarray(SHARES)).max() < 0.015
    for other in (FlowMapConfig(gamma=1.0, temperature=1.0), RenoisingConfig(temperature=0.0)):
        assert np.abs(shares_of(net, other, 4)[-1] - np.asarray(SHARES)).max() > 0.03


def test_the_network_is_always_asked_for_the_end():
    net, times = exact_flow(), []

    def features(p, y, s, t, *, key=None):
        jax.debug.callback(lambda s, t: times.append((float(s[0]), float(t[0]))), s, t)
        return net.features(p, y, s, t)

    asked = dataclasses.replace(net, features=features, two_time=True)
    sample_flow(
        jax.random.key(0),
        {},
        nothing_given(2, 1),
        net=asked,
        flow=FLOW,
        steps=4,
        cfg=RenoisingConfig(),
    )
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(times), [(k / 4, 1.0) for k in range(4)], atol=1e-5)


def test_given_tokens_are_kept():
    given = Given(jnp.full((ROWS, 1), 3), jnp.ones((ROWS, 1), bool))
    net = dataclasses.replace(exact_flow(), two_time=True)
    found = shares_of(net, RenoisingConfig(), 2, given)
    np.testing.assert_array_equal(found, [[0, 0, 0, 1]] * 2)


def test_who_is_sampled_so():
    """It is the default of a student whose tokens were drawn in training, and a choice of maps."""
    assert samplers_of("reinforce_matching")[0] == "renoising"
    assert samplers_of("distribution_matching")[:2] == ["flow_map", "renoising"]
    assert "flow_map" not in samplers_of("reinforce_matching")
