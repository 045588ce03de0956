"""Train steps: non-finite ones change nothing, microbatches average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.build.adapters import trained_params
from flm_jax.build.families.registry import OBJECTIVES, family, make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.checkpoints.state import AuxiliaryState, new_state
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.types import Tracker
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Auxiliary, Frozen
from flm_jax.losses.distillation.two_networks import RESIDUAL
from flm_jax.models.lora import split
from flm_jax.training.step import Companion, make_train_step, step_key
from helpers.runs import assert_equal, tiny_config


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


def small_objective(name):
    """(objective, trained parameters, frozen ones, tracker) of a small network with padding."""
    config = tiny_config()
    kind = OBJECTIVES[name]
    choose(config, objective=name, model=kind.networks[-1])
    config.model.length, config.model.vocab_size = 6, 11
    if kind.two_time:
        group = config.adapters if kind.adapts == "always" else config.model
        group.two_time = True
    if "redraw" in config.flow and kind.two_time:
        config.flow.redraw = False
    config.model.attention_softcap = 0.0
    if "context" in config.objective:
        config.objective.context = 0.5
    if kind.adapts == "always":
        config.adapters.base = "base"
    if name.endswith("_matching"):
        config.objective.auxiliary_updates = 1
    two_networks = name in ("residual", "merge")
    if two_networks:
        config.objective.diagonal = 0.0
        config.eval.batches = config.eval.samples = 0
    config = check(config)
    net = make_network(config)
    params, teacher = net.init(jax.random.key(0)), {}
    asked = kind.teachers or two_networks or name.endswith("_matching")
    if kind.adapts != "never" or asked:
        teacher = split(params)[0] if kind.adapts == "always" else params
    guide = net
    if kind.name == "masked_flow_map":  # its teacher is the flow, whose adapters have one time
        guide = make_network(config | {"adapters": config["adapters"] | {"two_time": False}})
        teacher = guide.init(jax.random.key(0))
    if name == "merge":
        config["objective"]["residual"] = "residual"
        teacher = teacher | {RESIDUAL: jax.tree.map(lambda x: 0.5 * x, params)}
    learns = bool(teacher)
    objective = make_objective(config, net, make_flow(config, 11), guide if learns else None)
    return objective, trained_params(config, params), teacher, family(config).tracker(config)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_part_counts_by_its_positions(name):
    """A part in which nothing is valid takes no share: the gradient is that of the other one."""
    objective, params, teacher, tracker = small_objective(name)
    tokens = jax.random.randint(jax.random.key(1), (16, 6), 0, 11)
    valid = jnp.tile(jnp.arange(16) % 2 == 0, (6, 1)).T
    optimizer = optax.sgd(1.0)
    step = make_train_step(
        objective, optimizer, seed=0, microbatches=2, ema_decay=0.9, tracker=tracker
    )
    # What a network beside this one holds, for the objectives that ask it: anything but this.
    other = jax.tree.map(lambda x: 0.9 * x + 0.01, params)
    state = new_state(params, optimizer, tracker, AuxiliaryState(other, ()))
    after, metrics = jax.jit(step)(state, teacher, {"tokens": tokens, "mask": valid})
    part = {"tokens": tokens[::2], "mask": valid[::2]}
    frozen = Frozen(teacher, state.ema_params, state.tracked, other)
    gradient = jax.jit(jax.grad(objective, has_aux=True))
    want, alone = gradient(params, frozen, part, step_key(0, state.step), Rows(0, 16))
    moved = jax.tree.map(jnp.subtract, params, after.params)
    assert optax.tree.norm(want) > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), moved, want)
    assert "counted" not in metrics and float(alone["counted"]) > 0
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_the_gradient_does_not_depend_on_the_number_of_parts(parts):
    """Of an objective that draws nothing, with rows of 1 to 6 valid positions."""
    objective, params, _, _ = small_objective("autoregressive")
    tokens = jax.random.randint(jax.random.key(1), (16, 6), 0, 11)
    valid = jnp.arange(6)[None] <= jnp.arange(16)[:, None] % 6
    batch, optimizer, moved = {"tokens": tokens, "mask": valid}, optax.sgd(1.0), []
    for number in (1, parts):
        step = make_train_step(objective, optimizer, seed=0, microbatches=number, ema_decay=0.9)
        moved.append(jax.jit(step)(new_state(params, optimizer), {}, batch))
    (whole, one), (split_up, several) = moved
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.tree.map(jnp.subtract, params, whole.params),
        jax.tree.map(jnp.subtract, params, split_up.params),
    )
    np.testing.assert_allclose(one["grad_norm"], several["grad_norm"], rtol=1e-4)
    name = "nll_nats_per_token"
    np.testing.assert_allclose(one[name], several[name], rtol=1e-5)


def test_both_networks_of_a_step_see_the_same_statistics():
    """Learnt times of the teacher, and the number of the step, in the auxiliary's updates too."""
    tracker = Tracker(lambda: jnp.float32(3.0), lambda state, observed, step: state)

    def objective(params, frozen, batch, key, rows):
        loss = jnp.sum(params["w"]) * frozen.tracked
        return loss, {"found": frozen.tracked + 10.0 * frozen.step}

    def beside(params, frozen, batch, key, rows):
        loss, metrics = objective(params, frozen, batch, key, rows)
        return loss, {"beside": metrics["found"]}

    optimizer = optax.sgd(1.0)
    companion = Companion(Auxiliary(beside, 1, 0, 0.0), optimizer)
    how = {"seed": 0, "microbatches": 1, "ema_decay": 0.9, "tracker": tracker}
    step = make_train_step(objective, optimizer, companion=companion, **how)
    params = {"w": jnp.ones(3)}
    state = new_state(params, optimizer, tracker, AuxiliaryState(params, optimizer.init(params)))
    for want in (3.0, 13.0):
        state, metrics = step(state, {}, {"tokens": jnp.ones((4, 2))})
        assert metrics["found"] == metrics["beside"] == want
