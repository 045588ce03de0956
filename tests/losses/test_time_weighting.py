"""Learnt weights over times scale the loss and find it at each time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.denoiser.forward import denoise
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.training.program import student_params
from helpers.networks import EIGHT_ROWS, FLOW, objective_of, random_batch


@pytest.mark.parametrize("name", ["denoising", "semigroup"])
def test_learned_weights_scale_the_loss(name):
    """At first the plain loss; with a constant u it is exp(-u) loss + u, the metrics unchanged."""
    net, objective = objective_of(name=name, weighting="learned")
    plain_net, plain = objective_of(name=name)
    params = net.init(jax.random.key(0))
    others = {k: v for k, v in params.items() if k != "weighting"}
    batch = random_batch()
    value = lambda goal, p: jax.jit(
        lambda p: goal(p, Frozen({}, p), batch, jax.random.key(5), EIGHT_ROWS)
    )(p)
    loss, metrics = value(plain, others)
    np.testing.assert_allclose(value(objective, params)[0], loss, rtol=1e-6)
    params["weighting"]["out"]["bias"] = jnp.asarray([0.7])
    u = 5.0 * np.tanh(0.7 / 5.0)
    got, same = value(objective, params)
    np.testing.assert_allclose(got, np.exp(-u) * loss + u, rtol=1e-6)
    for key, number in metrics.items():
        np.testing.assert_allclose(same[key], number, rtol=1e-6)
    assert net.log_loss is not None and plain_net.log_loss is None


def test_learned_weights_find_the_loss_of_each_time():
    """Trained alone, exp(u) comes within 10% of the mean loss near each time, which varies."""
    net, objective = objective_of(weighting="learned")
    params = net.init(jax.random.key(0))
    batch, rows = random_batch(512), Rows(0, 512)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, 200))

    @jax.jit
    def train(own):
        def step(carry, key):
            own, state = carry
            goal = lambda own: objective(
                params | {"weighting": own}, Frozen({}, {}), batch, key, rows
            )[0]
            updates, state = optimizer.update(jax.grad(goal)(own), state)
            return (optax.apply_updates(own, updates), state), None

        keys = jax.random.split(jax.random.key(7), 200)
        return jax.lax.scan(step, (own, optimizer.init(own)), keys)[0][0]

    own = train(params["weighting"])
    found = []
    for tau in (0.1, 0.5, 0.9):
        times = jnp.full(512, tau)
        y, _ = FLOW.states(jax.random.key(9), FLOW.t(times), batch["tokens"], params["table"])
        log_probs = jax.nn.log_softmax(denoise(net, params, y, times, times))
        want = -float(jnp.take_along_axis(log_probs, batch["tokens"][..., None], -1).mean())
        u = net.log_loss(params | {"weighting": own}, times[:1], times[:1])
        np.testing.assert_allclose(np.exp(u[0]), want, rtol=0.1)
        found.append(want)
    assert max(found) / min(found) > 1.5


def test_students_weigh_their_own_loss():
    net, _ = objective_of(name="semigroup", weighting="learned")
    fresh = net.init(jax.random.key(0))
    teacher = jax.tree.map(lambda x: x + 1.0, fresh)
    student = student_params(fresh, teacher)
    np.testing.assert_array_equal(student["table"], teacher["table"])
    np.testing.assert_array_equal(
        student["weighting"]["out"]["bias"], fresh["weighting"]["out"]["bias"]
    )
