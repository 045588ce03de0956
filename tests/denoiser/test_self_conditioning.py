"""Self-conditioning: what a network is shown in training, sampling and distillation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flm_jax
from flm_jax.build.families.registry import make_objective
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding, logits, mixture_cross_entropy
from flm_jax.denoiser.self_conditioning import estimated, fixed_point
from flm_jax.interop.flm import state_dict_from_params
from flm_jax.losses.base import Frozen
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss, denoising_loss_at
from flm_jax.losses.distillation.base import diagonal_loss_at
from flm_jax.models.dit import dit
from flm_jax.samplers.euler import EulerConfig, sample_euler
from flm_jax.samplers.flow import check_flow, sample_flow
from flm_jax.samplers.heun import HeunConfig
from helpers.networks import (
    EIGHT_ROWS,
    FLOW,
    FREE,
    KEY,
    LENGTH,
    TINY,
    VOCAB,
    random_batch,
    random_params,
    start,
)
from helpers.networks import ROWS as NUM
from helpers.runs import changed, run, tiny_config
from helpers.steering import flow_settings


@functools.lru_cache
def network(**more):
    settings = {"two_time": False, "self_conditioning": True, "dropout": 0.0} | more
    net = dit(dataclasses.replace(TINY, **settings))
    return net, random_params(net)


def states(seed, rows=NUM):
    return jax.random.normal(jax.random.key(seed), (rows, LENGTH, TINY.dim))


def test_a_fresh_network_is_the_plain_one_whatever_it_is_shown():
    plain = dit(dataclasses.replace(TINY, two_time=False, dropout=0.0))
    net, params = network()
    fresh = net.init(jax.random.key(0))
    assert (fresh["estimate"]["kernel"] == 0.0).all()
    tau = jnp.full(NUM, 0.3)
    own = {k: v for k, v in fresh.items() if k != "estimate"}
    want = plain.features(own, states(1), tau, tau)
    for estimate in (None, states(2)):
        got = net.features(fresh, states(1), tau, tau, estimate=estimate)
        np.testing.assert_array_equal(got, want)
    # No estimate is one of zeros; a trained network reads it.
    none, zero, some = (
        net.features(params, states(1), tau, tau, estimate=x)
        for x in (None, jnp.zeros_like(states(2)), states(2))
    )
    np.testing.assert_array_equal(none, zero)
    assert not np.allclose(none, some, atol=1e-3)


def iterated(net, params, y, tau, iterations):
    """The definition, call by call: read-out of the last one."""
    estimate = None
    for _ in range(iterations):
        out = forward(net, params, y, tau, tau, estimate=estimate)
        probs = jax.nn.softmax(logits(out, net), axis=-1)
        estimate = probs @ net.table(params)
    return out


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_a_fixed_point_is_so_many_calls(iterations):
    net, params = network()
    tau = jnp.full(NUM, 0.4)
    want = logits(iterated(net, params, states(1), tau, iterations), net)
    wrapped = fixed_point(net, iterations)
    got = logits(forward(wrapped, params, states(1), tau, tau), net)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    once = logits(forward(net, params, states(1), tau, tau), net)
    assert np.allclose(got, once, atol=1e-3) == (iterations == 1)
    assert not wrapped.self_conditioned


def test_iterations_need_a_network_that_takes_estimates():
    net, _ = network(self_conditioning=False)
    with pytest.raises(UserError, match="iterations=2 for a network without self-conditioning"):
        fixed_point(net, 2)
    with pytest.raises(UserError, match="iterations=0; expected at least 1"):
        fixed_point(network()[0], 0)


def test_every_second_row_learns_from_its_own_estimate():
    """Rows 0, 2, ... are shown the first call's estimate, the others none."""
    net, params = network()
    batch = random_batch()
    more = {"net": net, "flow": FLOW, "cfg": DenoisingConfig(), "rows": EIGHT_ROWS}
    seen = {}

    def features(params, y, s, t, *, key=None, estimate=None):
        if estimate is not None:
            seen.update(y=y, s=s, estimate=estimate)
        return net.features(params, y, s, t, key=key, estimate=estimate)

    watched = dataclasses.replace(net, features=features)
    loss, metrics = denoising_loss(params, None, batch, KEY, **(more | {"net": watched}))
    y, tau = seen["y"], seen["s"]
    own = estimated(net, params, y, (tau, tau), None)
    np.testing.assert_allclose(seen["estimate"][::2], own[::2], rtol=0, atol=1e-5)
    assert (seen["estimate"][1::2] == 0.0).all() and (jnp.abs(own[1::2]).max() > 0.1)
    weights = jnp.full(batch["tokens"].shape, 1 / batch["tokens"].size)
    shown = seen["estimate"]
    want, _ = denoising_loss_at(params, y, tau, batch["tokens"], weights, net=net, estimate=shown)
    np.testing.assert_allclose(loss, want, rtol=1e-6)
    np.testing.assert_allclose(metrics["nll_nats_per_token"], want, rtol=1e-6)


def test_no_gradient_goes_through_an_estimate():
    net, params = network()
    tau = jnp.full(NUM, 0.4)
    again = lambda p, y: jnp.sum(estimated(net, p, y, (tau, tau), None))
    for grad in jax.tree.leaves(jax.grad(again, argnums=(0, 1))(params, states(1))):
        assert (grad == 0.0).all()


def test_each_euler_step_is_shown_the_answer_of_the_step_before():
    net, params = network()
    y, steps = start(KEY, net, params, FREE), 4
    times = FLOW.t(jnp.linspace(0.0, 1.0, steps + 1))
    got = jax.jit(lambda: sample_euler(KEY, net, params, flow=FLOW, steps=steps, given=FREE))()
    estimate, differs = None, False
    for k in range(steps):
        tau = jnp.full(NUM, k / steps)
        out = forward(net, params, y, tau, tau, estimate=estimate)
        alone = logits(forward(net, params, y, tau, tau), net)
        probs = jax.nn.softmax(logits(out, net), axis=-1)
        np.testing.assert_allclose(got.steps_confidence[k], probs.max(-1), rtol=0, atol=1e-4)
        np.testing.assert_array_equal(got.steps_tokens[k], probs.argmax(-1))
        differs |= k > 0 and not np.allclose(jax.nn.softmax(alone), probs, atol=1e-3)
        estimate = expected_embedding(out, net.table(params), net)
        y = FLOW.path.step(y, estimate, jnp.full(NUM, times[k]), jnp.full(NUM, times[k + 1]))
    assert differs


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_iterations_make_an_ordinary_denoiser(solver):
    """With iterations=K: the samples of the wrapped network, K calls a step."""
    net, params = network()
    run = lambda net, cfg: sample_flow(KEY, params, FREE, net=net, flow=FLOW, steps=3, cfg=cfg)
    got = run(net, flow_settings(False, solver, iterations=2))
    want = run(fixed_point(net, 2), flow_settings(False, solver))
    np.testing.assert_array_equal(got.steps_tokens, want.steps_tokens)
    assert got.calls == 6
    carried_along = run(net, EulerConfig())
    assert (carried_along.steps_confidence != got.steps_confidence).any()


@pytest.mark.parametrize(
    "steering",
    [
        HeunConfig(),
        EulerConfig(guidance=2.0, weak_dropout=0.1),
        EulerConfig(reward="r", reward_scale=1.0),
    ],
)
def test_an_estimate_is_carried_along_plain_euler_steps_alone(steering):
    net, _ = network()
    with pytest.raises(UserError, match="give iterations=2"):
        check_flow(steering, net, 4, None)
    check_flow(dataclasses.replace(steering, iterations=2), net, 4, None)
    with pytest.raises(UserError, match="without self-conditioning"):
        check_flow(EulerConfig(iterations=2), network(self_conditioning=False)[0], 4, None)


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_diagonal_distils_the_teachers_fixed_point(iterations):
    """Its target is the teacher's last call; where the student says that, the gradient vanishes."""
    teacher_net, teacher = network()
    student, params = network(self_conditioning=False, two_time=True)
    tau, weights = jnp.full(NUM, 0.4), jnp.full((NUM, LENGTH), 1 / (NUM * LENGTH))
    y = states(1)
    out = forward(student, params, y, tau, tau)
    target = iterated(teacher_net, teacher, y, tau, iterations)
    want, _ = mixture_cross_entropy(out, [(jnp.ones(NUM), target)], weights, student)
    asked = (fixed_point(teacher_net, iterations), teacher)
    tokens = jnp.zeros((NUM, LENGTH), jnp.int32)
    got, _ = diagonal_loss_at(params, (y, y), tau, tokens, weights, net=student, teacher=asked)
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_the_objective_asks_the_teacher_as_often_as_it_is_told():
    """objective.iterations reaches the diagonal of a route: another loss with 1 than with 2."""
    teacher_net, teacher = network()
    config = tiny_config()
    config.model.vocab_size, config.model.length, config.model.dim = VOCAB, LENGTH, TINY.dim
    config.train.batch, config.model.two_time = 8, True
    choose(config, objective="semigroup")
    config.objective.teacher = "x"
    losses = []
    for iterations in (1, 2):
        config.objective.iterations = iterations
        checked = check(config)
        net = make_network(checked)
        loss = make_objective(checked, net, FLOW, teacher_net)
        params = random_params(net)
        frozen = Frozen(teacher=teacher, average=None)
        losses.append(float(loss(params, frozen, random_batch(), KEY, EIGHT_ROWS)[0]))
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"objective.name": "semigroup", "model.two_time": True}, "objective semigroup with two"),
        (
            {"objective.name": "masked_diffusion"},
            "got objective masked_diffusion with two_time = False",
        ),
        ({"objective.form": "mse"}, "self_conditioning goes with cross entropy"),
        ({"train.batch": 3}, "expected an even train.batch / train.microbatches, got 3"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, says):
    config = tiny_config()
    config.model.vocab_size, config.model.self_conditioning = VOCAB, True
    with pytest.raises(UserError, match=says):
        config = check(changed(config, changes))
        make_objective(config, make_network(config), FLOW)


def test_a_reference_file_cannot_hold_it():
    with pytest.raises(UserError, match="self_conditioning"):
        state_dict_from_params(network()[1])


def test_it_trains_samples_scores_and_is_distilled(tmp_path):
    """By configuration alone, sharded over 8 devices; the student has no estimate any more."""
    config = tiny_config()
    config.model.self_conditioning = True
    assert run(config, tmp_path / "flm") == 0
    model = flm_jax.load(tmp_path / "flm")
    assert np.abs(load_model(tmp_path / "flm").params["estimate"]["kernel"]).max() > 0
    assert model.sample(2, steps=3).calls == 3
    assert 0.0 < model.score(["new york"]).nats[0] < 20.0
    student = tiny_config()
    student.model.two_time = True
    choose(student, objective="semigroup")
    student.objective.teacher = str(tmp_path / "flm")
    assert run(student, tmp_path / "fmlm") == 0
    made = load_model(tmp_path / "fmlm")
    assert "estimate" not in made.params and not made.net.self_conditioned
