"""Train steps: non-finite ones change nothing, microbatches average."""

import jax.numpy as jnp
import numpy as np
import optax

from flm_jax.checkpoints.state import new_state
from flm_jax.training.step import make_train_step
from helpers.runs import assert_equal


def _quadratic(params, frozen, batch, key, rows):
    del frozen, key, rows
    loss = jnp.sum(params["w"] * jnp.mean(batch["tokens"]))
    return loss, {"nll_nats_per_token": loss}


def test_a_non_finite_step_changes_nothing_and_is_counted():
    optimizer = optax.adam(0.1)
    step = make_train_step(_quadratic, optimizer, seed=0, microbatches=1, ema_decay=0.9)
    state = new_state({"w": jnp.ones(3)}, optimizer)
    good = {"tokens": jnp.ones((4, 2))}
    state, _ = step(state, {}, good)
    after, metrics = step(state, {}, {"tokens": jnp.full((4, 2), jnp.nan)})
    assert_equal(after._replace(step=0, skipped=0), state._replace(step=0, skipped=0))
    assert int(after.skipped) == 1 and int(after.step) == 2
    assert int(metrics["skipped_in_a_row"]) == 1
    after, _ = step(after, {}, good)
    assert int(after.skipped) == 0
    assert not np.array_equal(after.params["w"], state.params["w"])


def test_microbatches_average_gradients_over_disjoint_rows():
    seen = []

    def objective(params, frozen, batch, key, rows):
        del frozen, key
        seen.append(rows)
        loss = jnp.sum(params["w"]) * jnp.mean(batch["tokens"])
        return loss, {"nll_nats_per_token": loss}

    optimizer = optax.sgd(1.0)
    batch = {"tokens": jnp.arange(8.0).reshape(8, 1)}
    states = []
    for parts in (1, 4):
        step = make_train_step(objective, optimizer, seed=0, microbatches=parts, ema_decay=0.9)
        states.append(step(new_state({"w": jnp.ones(3)}, optimizer), {}, batch)[0])
    np.testing.assert_allclose(states[0].params["w"], states[1].params["w"], rtol=1e-6)
    assert all(rows.total == 8 for rows in seen if not isinstance(rows.start, int))
