"""Clean context: times of positions, what counts in the losses, held tokens, learned weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_samplers import CONFIG, LENGTH, VOCAB
from test_training import run, tiny_config

from flm_jax.build.families.flow_map import ROUTES
from flm_jax.build.families.registry import make_objective
from flm_jax.build.load import Model, check_teacher
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.data.tasks.registry import make_task
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.clocks import decoding_clock, tau_to_t
from flm_jax.flows.noising import noisy_states
from flm_jax.flows.time_sampling import Rows
from flm_jax.interop.flm import state_dict_from_params
from flm_jax.losses.base import Frozen
from flm_jax.losses.clean_context import ContextConfig, at_clean, clean_context
from flm_jax.losses.denoising import DenoisingConfig, denoising_loss
from flm_jax.losses.distillation.base import Pairs
from flm_jax.losses.distillation.eulerian import derivative_along_flow
from flm_jax.losses.distillation.lagrangian import derivative_in_t
from flm_jax.losses.distillation.semigroup import split_times
from flm_jax.models.dit import dit
from flm_jax.samplers.base import Given
from flm_jax.samplers.euler import sample_euler
from flm_jax.training.program import student_params

ROWS = Rows(0, 8)


def objective_of(**changes):
    """(network, objective) of a tiny configuration."""
    config = tiny_config()
    config.model.vocab_size, config.model.length = VOCAB, LENGTH
    config.train.batch = 8
    for key, value in changes.items():
        config.objective[key] = value
    config.model.two_time = config.objective.name in ROUTES
    config = check(config)
    net = make_network(config)
    return net, make_objective(config, net, decoding_clock(VOCAB))


def random_params(net, seed=1):
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def random_batch(rows=8, **more):
    tokens = jax.random.randint(jax.random.key(3), (rows, LENGTH), 0, VOCAB)
    return {"tokens": tokens, "mask": jnp.ones((rows, LENGTH), bool), **more}


def loss_of(name):
    """(network, (params, batch) -> loss) of one objective."""
    net, objective = objective_of(name=name)

    def loss(params, batch):
        return objective(params, Frozen({}, params), batch, jax.random.key(5), ROWS)[0]

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
    cfg = ContextConfig(share=0.5, prompt=0)
    clean = np.asarray(clean_context(jax.random.key(0), batch, cfg, Rows(0, rows)))
    sizes = np.bincount(clean.sum(axis=1), minlength=5) / rows
    np.testing.assert_allclose(sizes, [0.5 + 0.125, 0.125, 0.125, 0.125, 0.0], atol=0.015)
    np.testing.assert_allclose(clean.mean(axis=0), 0.5 * 1.5 / 4, atol=0.015)
    given = jnp.arange(4)[None] == jnp.full((rows, 1), 3)
    cfg = ContextConfig(share=0.5, prompt=2)
    more = clean_context(jax.random.key(0), batch | {"prompt": given}, cfg, Rows(0, rows))
    np.testing.assert_array_equal(more, clean | np.array([True, True, False, True]))
    assert clean_context(jax.random.key(0), batch, ContextConfig(), Rows(0, rows)) is None
    other = clean_context(jax.random.key(0), batch, ContextConfig(0.5), Rows(rows, 2 * rows))
    assert (np.asarray(other) != clean).any()


def test_clean_positions_are_their_tokens_at_time_one():
    tokens = random_batch()["tokens"]
    clean = jax.random.bernoulli(jax.random.key(1), 0.5, tokens.shape)
    table = jax.random.normal(jax.random.key(2), (VOCAB, 5))
    tau = jnp.linspace(0.1, 0.8, 8)
    tau, t = at_clean(clean, tau, tau_to_t(decoding_clock(VOCAB), tau))
    y, _ = noisy_states(jax.random.key(3), t, tokens, table)
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


def mirror():
    """A network whose features are its state and its two times."""

    def features(params, y, s, t, *, key=None):
        s, t = (x if x.ndim == 2 else jnp.broadcast_to(x[:, None], y.shape[:2]) for x in (s, t))
        return jnp.concatenate([y, s[..., None], t[..., None]], axis=-1)

    table = jnp.eye(VOCAB)
    readout = lambda params: (jnp.zeros((VOCAB + 2, VOCAB)), jnp.zeros(VOCAB))
    return Network(lambda key: {}, features, readout, lambda p: table, VOCAB, VOCAB, LENGTH)


def test_clean_positions_do_not_move():
    """Along the flow, and when the end time moves, the tangents of the clean positions are 0."""
    clock, net = decoding_clock(VOCAB), mirror()
    clean = jnp.tile(jnp.arange(LENGTH) % 2 == 0, (3, 1))
    tau_s, tau_t = jnp.asarray([0.1, 0.2, 0.3]), jnp.asarray([0.5, 0.9, 1.0])
    times = at_clean(clean, tau_s, tau_t, tau_to_t(clock, tau_s), tau_to_t(clock, tau_t))
    y = jax.random.normal(jax.random.key(0), (3, LENGTH, VOCAB))
    pairs = Pairs((y, None), *times, jnp.ones((3, LENGTH)))
    denoised = jax.nn.softmax(y)
    along = derivative_along_flow({}, pairs, denoised, net=net, clock=clock)[1]
    in_t = derivative_in_t({}, pairs, net=net, clock=clock)[1]
    for tangent in (along, in_t):
        np.testing.assert_array_equal(np.asarray(tangent)[clean], 0.0)
        assert (np.abs(np.asarray(tangent)[~clean]).max(axis=-1) > 0.0).all()
    np.testing.assert_allclose(along[..., :VOCAB][~clean], (denoised - y)[~clean], rtol=1e-6)


def test_all_positions_of_a_row_split_at_one_share():
    s, t = jnp.full((4, 3), 0.2), jnp.full((4, 3), 0.6)
    u = np.asarray(split_times(jax.random.key(0), s, t, "uniform"))
    np.testing.assert_array_equal(u, np.tile(u[:, :1], (1, 3)))
    assert len(np.unique(u)) == 4
    rows = split_times(jax.random.key(0), s[:, 0], t[:, 0], "uniform")
    np.testing.assert_array_equal(u[:, 0], rows)


@pytest.mark.parametrize("any_order", [True, False])
def test_given_tokens_stand_at_time_one(any_order):
    """Every call of an any-order network sees them clean; another one on their interpolant."""
    seen, base = [], mirror()

    def features(params, y, s, t, *, key=None):
        out = base.features(params, y, s, t)
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), out, ordered=True)
        return out

    net = dataclasses.replace(base, features=features, any_order=any_order, two_time=True)
    mask = jnp.tile(jnp.arange(LENGTH) < 2, (3, 1))
    given = Given(jnp.full((3, LENGTH), 4), mask)
    out = sample_euler(
        jax.random.key(0), net, {}, clock=decoding_clock(VOCAB), steps=3, given=given
    )
    jax.block_until_ready(out)
    assert len(seen) == 3
    for k, call in enumerate(seen):
        y, s, t = call[..., :VOCAB], call[..., VOCAB], call[..., VOCAB + 1]
        np.testing.assert_allclose(s[:, 2:], k / 3, atol=1e-6)
        np.testing.assert_allclose(t[:, 2:], (k + 1) / 3, atol=1e-6)
        clean = np.broadcast_to(np.eye(VOCAB)[4], (3, 2, VOCAB))
        assert np.array_equal(y[:, :2], clean) == any_order
        assert ((s[:, :2] == 1.0) & (t[:, :2] == 1.0)).all() == any_order


def test_given_clean_context_the_exact_conditional_is_reached():
    """phrases_shared: p(york | new) = .8 and so on, from 400 steps; each within .04.

    The law of each word alone, which a network blind to the context would give, is .3 away.
    """
    task = make_task("phrases_shared")
    vocab, clock = task.tokenizer.vocab_size, decoding_clock(task.tokenizer.vocab_size)
    cfg = dataclasses.replace(
        CONFIG, vocab_size=vocab, max_length=2, dim=32, depth=2, dropout=0.0, two_time=False
    )
    net, optimizer, rows = dit(cfg), optax.adam(optax.cosine_decay_schedule(5e-3, 400)), 256
    aim = DenoisingConfig(context=ContextConfig(1.0))

    @jax.jit
    def train(params, tokens, key):
        def step(carry, given):
            (params, state), (tokens, key) = carry, given
            batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
            settings = {"net": net, "clock": clock, "cfg": aim, "rows": Rows(0, rows)}
            grad = jax.grad(lambda p: denoising_loss(p, batch, key, **settings)[0])(params)
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


@pytest.mark.parametrize("name", ["denoising", "semigroup"])
def test_learned_weights_scale_the_loss(name):
    """At first the plain loss; with a constant u it is exp(-u) loss + u, the metrics unchanged."""
    net, objective = objective_of(name=name, weighting="learned")
    plain_net, plain = objective_of(name=name)
    params = net.init(jax.random.key(0))
    others = {k: v for k, v in params.items() if k != "weighting"}
    batch = random_batch()
    value = lambda goal, p: jax.jit(
        lambda p: goal(p, Frozen({}, p), batch, jax.random.key(5), ROWS)
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
    clock = decoding_clock(VOCAB)
    found = []
    for tau in (0.1, 0.5, 0.9):
        times = jnp.full(512, tau)
        y, _ = noisy_states(
            jax.random.key(9), tau_to_t(clock, times), batch["tokens"], params["table"]
        )
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


def test_learned_positions_tell_places_apart():
    cfg = dataclasses.replace(CONFIG, dropout=0.0)
    for net in (dit(cfg), dit(dataclasses.replace(cfg, position_table=True))):
        params = net.init(jax.random.key(0))
        half = jnp.full(1, 0.5)
        out = np.asarray(net.features(params, jnp.ones((1, LENGTH, CONFIG.dim)), half, half))
        same = np.allclose(out, out[:, :1], atol=1e-5)
        assert same == ("positions" not in params)
    with pytest.raises(UserError, match="position_table"):
        state_dict_from_params(params)


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"context": 1.5}, r"config.objective.context is 1.5; expected a share in \[0, 1\]"),
        ({"prompt": 2}, "config.objective.prompt is 2; expected 0 to 1"),
        ({"name": "masked", "context": 0.5}, "objective masked does not know; set it to 0.0"),
        ({"name": "masked", "weighting": "learned"}, "masked does not know; set it to 'equal'"),
        ({"weighting": "lerned"}, "did you mean 'learned'"),
    ],
)
def test_refused_settings(changes, says, tmp_path):
    config = tiny_config()
    for key, value in changes.items():
        config.objective[key] = value
    with pytest.raises(UserError, match=says):
        run(config, tmp_path / "run")


def test_a_teacher_without_context_is_refused():
    student = tiny_config()
    student.objective.name, student.model.two_time = "semigroup", True
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
