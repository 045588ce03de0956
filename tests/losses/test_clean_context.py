"""Clean context: times of positions, what counts in the losses, the exact conditional."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.build.families.flow_map import ROUTES
from flm_jax.build.load import Model, check_teacher
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.data.tasks.registry import make_task
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.losses.clean_context import ContextConfig, at_clean, clean_context
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss
from flm_jax.losses.distillation.base import Pairs
from flm_jax.losses.distillation.eulerian import derivative_along_flow
from flm_jax.losses.distillation.lagrangian import derivative_in_t
from flm_jax.losses.distillation.semigroup import split_times
from flm_jax.models.dit import dit
from helpers.networks import (
    EIGHT_ROWS,
    FLOW,
    LENGTH,
    TINY,
    VOCAB,
    mirror_network,
    objective_of,
    random_batch,
    random_params,
)
from helpers.runs import run, tiny_config


def loss_of(name):
    """(network, (params, batch) -> loss) of one objective."""
    net, objective = objective_of(name=name)

    def loss(params, batch):
        return objective(params, Frozen({}, params), batch, jax.random.key(5), EIGHT_ROWS)[0]

    return net, loss


def assert_near(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("name", ["denoising", *ROUTES])
def test_constant_times_of_positions_equal_times_of_rows(name):
    """Losses, and FLM's gradients, within 1e-6: a prompt of no token makes every time [B, L]."""
    net, loss = loss_of(name)
    params, run = random_params(net), jax.value_and_grad(loss) if name == "denoising" else loss
    got = jax.jit(run)(params, random_batch(prompt=jnp.zeros((8, LENGTH), bool)))
    assert_near(got, jax.jit(run)(params, random_batch()))


def test_context_law():
    """The share of rows, as many of each size, every position as often, prompts always."""
    rows = 20_000
    batch = {"tokens": jnp.zeros((rows, 4), jnp.int32)}
    cfg = ContextConfig(share=0.5, prompt=0, dropout=0.0)
    clean = np.asarray(clean_context(jax.random.key(0), batch, cfg, Rows(0, rows)))
    sizes = np.bincount(clean.sum(axis=1), minlength=5) / rows
    np.testing.assert_allclose(sizes, [0.5 + 0.125, 0.125, 0.125, 0.125, 0.0], atol=0.015)
    np.testing.assert_allclose(clean.mean(axis=0), 0.5 * 1.5 / 4, atol=0.015)
    given = jnp.arange(4)[None] == jnp.full((rows, 1), 3)
    cfg = ContextConfig(share=0.5, prompt=2, dropout=0.0)
    more = clean_context(jax.random.key(0), batch | {"prompt": given}, cfg, Rows(0, rows))
    np.testing.assert_array_equal(more, clean | np.array([True, True, False, True]))
    assert (
        clean_context(jax.random.key(0), batch, ContextConfig(0.0, 0, 0.0), Rows(0, rows)) is None
    )
    other = clean_context(
        jax.random.key(0), batch, ContextConfig(0.5, 0, 0.0), Rows(rows, 2 * rows)
    )
    assert (np.asarray(other) != clean).any()


def test_clean_positions_are_their_tokens_at_time_one():
    tokens = random_batch()["tokens"]
    clean = jax.random.bernoulli(jax.random.key(1), 0.5, tokens.shape)
    table = jax.random.normal(jax.random.key(2), (VOCAB, 5))
    tau = jnp.linspace(0.1, 0.8, 8)
    tau, t = at_clean(clean, tau, FLOW.t(tau))
    y, _ = FLOW.states(jax.random.key(3), t, tokens, table)
    np.testing.assert_array_equal(np.asarray(tau)[clean], 1.0)
    np.testing.assert_array_equal(np.asarray(y)[clean], np.asarray(table[tokens])[clean])
    assert (np.asarray(y)[~clean] != np.asarray(table[tokens])[~clean]).all()


@pytest.mark.parametrize("name", ["denoising", *ROUTES])
def test_clean_positions_do_not_count(name):
    """With all but one position clean the mean is over that one, also where only it is valid."""
    net, loss = loss_of(name)
    free = jnp.tile(jnp.arange(LENGTH) == 2, (8, 1))
    loss, params = jax.jit(loss), random_params(net)
    got = loss(params, random_batch(prompt=~free))
    assert np.isfinite(got)
    assert_near(got, loss(params, random_batch(prompt=~free) | {"mask": free}))


def test_clean_positions_do_not_move():
    """Along the flow, and when the end time moves, the tangents of the clean positions are 0."""
    net = mirror_network()
    clean = jnp.tile(jnp.arange(LENGTH) % 2 == 0, (3, 1))
    tau_s, tau_t = jnp.asarray([0.1, 0.2, 0.3]), jnp.asarray([0.5, 0.9, 1.0])
    times = at_clean(clean, tau_s, tau_t, FLOW.t(tau_s), FLOW.t(tau_t))
    y = jax.random.normal(jax.random.key(0), (3, LENGTH, VOCAB))
    pairs = Pairs((y, None), *times, jnp.ones((3, LENGTH)))
    denoised = jax.nn.softmax(y)
    along = derivative_along_flow({}, pairs, denoised, net=net, flow=FLOW)[1]
    in_t = derivative_in_t({}, pairs, net=net, flow=FLOW)[1]
    for tangent in (along, in_t):
        np.testing.assert_array_equal(np.asarray(tangent)[clean], 0.0)
        assert (np.abs(np.asarray(tangent)[~clean]).max(axis=-1) > 0.0).all()
    np.testing.assert_allclose(along[..., :VOCAB][~clean], (denoised - y)[~clean], rtol=1e-6)


def test_all_positions_of_a_row_split_at_one_share():
    s, t = jnp.full((4, 3), 0.2), jnp.full((4, 3), 0.6)
    u = np.asarray(split_times(jax.random.key(0), FLOW, s, t, "uniform"))
    np.testing.assert_array_equal(u, np.tile(u[:, :1], (1, 3)))
    assert len(np.unique(u)) == 4
    rows = split_times(jax.random.key(0), FLOW, s[:, 0], t[:, 0], "uniform")
    np.testing.assert_array_equal(u[:, 0], rows)


def test_given_clean_context_the_exact_conditional_is_reached():
    """phrases_shared: p(york | new) = .8 and so on, from 400 steps; each within .04.

    The law of each word alone, which a network blind to the context would give, is .3 away.
    """
    task = make_task("phrases_shared")
    vocab = task.tokenizer.vocab_size
    flow = onehot_flow(decoding_clock(vocab))
    cfg = dataclasses.replace(
        TINY, vocab_size=vocab, length=2, dim=32, depth=2, dropout=0.0, two_time=False
    )
    net, optimizer, rows = dit(cfg), optax.adam(optax.cosine_decay_schedule(5e-3, 400)), 256
    aim = DenoisingConfig(context=1.0)

    @jax.jit
    def train(params, tokens, key):
        def step(carry, given):
            (params, state), (tokens, key) = carry, given
            batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
            settings = {"net": net, "flow": flow, "cfg": aim, "rows": Rows(0, rows)}
            grad = jax.grad(lambda p: denoising_loss(p, None, batch, key, **settings)[0])(params)
            updates, state = optimizer.update(grad, state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(key, tokens.shape[0])
        return jax.lax.scan(step, (params, optimizer.init(params)), (tokens, keys))[0][0]

    tokens = jnp.asarray(task.sample(400 * rows, 0).reshape(400, rows, 2))
    params = train(net.init(jax.random.key(0)), tokens, jax.random.key(1))
    joint = np.zeros((vocab, vocab))
    for (a, b), p in task.law.items():
        joint[a, b] = p
    table = net.table(params)
    for place, law in ((1, joint), (0, joint.T)):
        known = np.flatnonzero(law.sum(axis=1))
        clean = jnp.tile(jnp.arange(2) != place, (len(known), 1))
        times = at_clean(clean, jnp.zeros(len(known)))[0]
        y = jnp.where(clean[..., None], table[known][:, None], 0.0)  # the mean of the noise
        probs = jax.nn.softmax(denoise(net, params, y, times, times))[:, place]
        want = law[known] / law[known].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probs, want, atol=0.04)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"context": 1.5}, r"config.objective.context is 1.5; expected a number in \[0, 1\]"),
        ({"prompt": 2}, "config.objective.prompt is 2; expected 0 to 1"),
        (
            {"name": "masked_diffusion", "context": 0.5},
            "masked_diffusion has no 'context': that is a key of denoising",
        ),
        (
            {"name": "masked_diffusion", "weighting": "learned"},
            "masked_diffusion has no 'weighting'",
        ),
        ({"weighting": "lerned"}, "did you mean 'learned'"),
    ],
)
def test_refused_settings(changes, says, tmp_path):
    config = tiny_config()
    choose(config, objective=changes.get("name", "denoising"))
    with config.unlocked():
        config.objective.update(changes)
    with pytest.raises(UserError, match=says):
        run(config, tmp_path / "run")


def test_a_teacher_without_context_is_refused():
    student = tiny_config()
    choose(student, objective="semigroup")
    student.model.two_time = True
    student.objective.context = 0.5
    teacher, tokenizer = check(tiny_config()), make_task("phrases2").tokenizer
    teacher["model"]["vocab_size"] = student.model.vocab_size = 4
    for share in (0.5, 0.0):
        teacher["objective"]["context"] = share
        model = Model(teacher, make_network(teacher), {}, None, tokenizer, 0)
        if share:
            check_teacher(check(student), tokenizer, model)
    with pytest.raises(UserError, match="need a teacher that was trained with clean context"):
        check_teacher(check(student), tokenizer, model)


def test_context_dropout_leaves_rows_without_anything_clean():
    """A share of the rows, prompts included; the other rows are as without it."""
    rows = 20_000
    batch = {"tokens": jnp.zeros((rows, 4), jnp.int32)}
    drawn = lambda cfg: np.asarray(clean_context(jax.random.key(0), batch, cfg, Rows(0, rows)))
    want, clean = drawn(ContextConfig(0.5, 2, 0.0)), drawn(ContextConfig(0.5, 2, 0.25))
    kept = clean.any(axis=1)
    assert abs(kept.mean() - 0.75) < 4 * 0.5 / rows**0.5
    np.testing.assert_array_equal(clean[kept], want[kept])
