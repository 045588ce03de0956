"""Distillation of discrete diffusion in rounds: divergences, targets and fixed points."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.checkpoints.state import AuxiliaryState, new_state
from flm_jax.denoiser.divergence import divergence
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.time_sampling import Rows
from flm_jax.flows.uniform_noise import gaussian_times
from flm_jax.losses.base import Frozen, Renewal
from flm_jax.losses.distillation.discrete_consistency import ConsistencyConfig, consistency_loss
from flm_jax.losses.distillation.rounds import RoundsConfig
from flm_jax.losses.distillation.through_time import (
    ThroughTimeConfig,
    teacher_target,
    through_time_loss,
)
from flm_jax.training.step import make_train_step
from helpers.heads import head_network, parallel, readout
from helpers.laws import EXACT, KEY, LENGTH, SEQUENCES, VOCAB, law_batch


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("mesh, tile", [(None, 0), ("data-fsdp-tensor", 4)])
def test_divergences_and_their_gradients(direction, mesh, tile):
    out, other = readout(1), readout(2)
    net = head_network(loss_tile=tile, parallel=mesh and parallel(mesh))
    weights = jnp.asarray(np.random.default_rng(0).random(out.features.shape[:2]), jnp.float32)

    def written_out(out):
        logs = []
        for x in (out, other):
            raw = x.features @ x.kernel + x.bias[None, None]
            logs.append(jax.nn.log_softmax(net.logit_softcap * jnp.tanh(raw / net.logit_softcap)))
        p, q = logs if direction == "reverse" else logs[::-1]
        return jnp.sum(weights * jnp.sum(jnp.exp(p) * (p - q), axis=-1))

    fn = lambda out: divergence(out, other, weights, net, direction)[0]
    found, slope = jax.jit(jax.value_and_grad(fn))(out)
    want, wanted = jax.jit(jax.value_and_grad(written_out))(out)
    np.testing.assert_allclose(found, want, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), slope, wanted)


def two_tokens():
    """The exact masked network of a law of two tokens, of 2, plus parameters; and texts of it."""
    law = jnp.asarray([[0.01, 0.69], [0.28, 0.02]])

    def features(params, x, s, t, *, key=None):
        masked, seen = x[..., 2:], x[..., :2]
        other = jnp.where(masked > 0.5, 1.0, seen)  # [B, 2, 2], of which tokens may stand there
        probs = jnp.stack([other[:, 1] @ law.T, other[:, 0] @ law], axis=1)
        return jnp.log(probs) + params["more"][None]

    net = dataclasses.replace(
        EXACT,
        features=features,
        readout=lambda params: (jnp.eye(2), jnp.zeros(2)),
        table=lambda params: jnp.eye(3)[:2],
        vocab_size=2,
        dim=3,
        max_length=2,
        anchor=lambda params: jnp.eye(3)[2:].repeat(2, axis=0),
    )
    index = np.random.default_rng(0).choice(4, size=(24, 1024), p=np.asarray(law).ravel())
    tokens = jnp.asarray(np.stack([index // 2, index % 2], axis=-1), jnp.int32)
    return net, tokens


def test_an_exact_teacher_is_a_fixed_point_of_self_distillation_through_time():
    """By the forward divergence, in the mean over texts and its draws; by the reverse one it is
    none. So too with times for which some tokens stay masked."""
    net, tokens = two_tokens()
    params, size = {"more": jnp.zeros((2, 2))}, {}
    for direction in ("forward", "reverse"):
        cfg = ThroughTimeConfig(first_span=0.3, direction=direction)

        @jax.jit
        @jax.grad
        def slope(params, tokens, key, cfg=cfg):
            batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape)}
            frozen, rows = Frozen({}, {}, other={"more": jnp.zeros((2, 2))}), Rows(0, 1024)
            return through_time_loss(params, frozen, batch, key, rows, net=net, cfg=cfg)[0]

        found = np.stack(
            [slope(params, x, jax.random.key(i))["more"] for i, x in enumerate(tokens)]
        )
        error = found.std(axis=0) / np.sqrt(len(found))
        size[direction] = np.abs(found.mean(axis=0) / error).max()
    assert size["forward"] < 4 and size["reverse"] > 8, size


def test_the_teacher_speaks_of_each_token_when_it_reveals_it():
    """Spans: so long that all is revealed at once, the first call's word; so short that nothing is,
    the second call's, which has not seen more; between, one or the other, by its probability."""
    rows = 2000
    tokens = jnp.tile(jnp.asarray(SEQUENCES[:1]), (rows, 1))
    masked = jnp.ones((rows, LENGTH), bool)
    told = []

    def features(params, x, s, t, *, key=None):
        told.append(s)
        seen = 1.0 - x[..., VOCAB:]  # 1 where a token is visible
        return jnp.concatenate([x[..., :VOCAB], s[:, None, None] + 0.0 * seen], axis=-1)

    net = dataclasses.replace(
        EXACT,
        features=features,
        readout=lambda params: (jnp.eye(VOCAB + 1, VOCAB), jnp.zeros(VOCAB)),
    )
    cfg = ThroughTimeConfig(time_conditioning=True)
    target = lambda noise, span: jax.jit(functools.partial(teacher_target, net=net, cfg=cfg))(
        KEY, {}, tokens, masked, jnp.full(rows, noise), span
    ).features[..., -1]
    np.testing.assert_allclose(target(0.3, 0.4), 0.7, rtol=1e-6)
    np.testing.assert_allclose(target(0.8, 1e-6), 0.2, atol=1e-5)
    some = np.asarray(target(0.8, 0.2))  # the first call is told 0.2, the second 0.4
    assert abs((some < 0.3).mean() - 0.25) < 0.02
    np.testing.assert_allclose(np.unique(some.round(5)), [0.2, 0.4], atol=1e-5)


def test_the_teacher_goes_on_from_what_it_wrote():
    """A teacher that writes 1 always, of texts of 0: its second call sees no 0, and some 1."""

    def features(params, x, s, t, *, key=None):
        seen = jnp.sum(x[..., :2], axis=1)  # how often 0 and 1 are visible
        always = jnp.asarray([0.0, 50.0])[None, None]
        parts = [jnp.broadcast_to(y, (*x.shape[:2], 2)) for y in (always, seen[:, None])]
        return jnp.concatenate(parts, axis=-1)

    head = jnp.eye(4, VOCAB) * jnp.asarray([1.0, 1.0, 0.0, 0.0])[:, None]
    how = {"readout": lambda params: (head, jnp.zeros(VOCAB)), "features": features}
    net, cfg = dataclasses.replace(EXACT, **how), ThroughTimeConfig()
    run = jax.jit(functools.partial(teacher_target, net=net, cfg=cfg))
    tokens, masked = jnp.zeros((200, LENGTH), jnp.int32), jnp.ones((200, LENGTH), bool)
    seen = run(KEY, {}, tokens, masked, jnp.full(200, 0.8), 0.4).features[..., 2:]
    assert (seen[..., 0] == 0).all() and (seen[..., 1] > 0).any()


def test_a_text_that_is_known_is_a_fixed_point_of_discrete_consistency():
    """A law of one text: every answer is that text. With another answer there is a gradient."""
    clean = 50.0 * jax.nn.one_hot(jnp.asarray(SEQUENCES[0]), VOCAB)
    net = dataclasses.replace(
        EXACT,
        features=lambda params, x, s, t, *, key=None: (
            clean[None] + params["more"][None] * x[..., :VOCAB]
        ),
        table=lambda params: jnp.eye(VOCAB + 1)[:VOCAB],
    )
    times = gaussian_times(decoding_clock(VOCAB), 0.1, 0.9)
    batch = {"tokens": jnp.tile(jnp.asarray(SEQUENCES[:1]), (256, 1)), "mask": jnp.ones((256, 4))}

    def loss(params, teacher, direction):
        cfg = ConsistencyConfig(first_span=0.3, direction=direction)
        frozen = Frozen({}, {}, other=teacher)
        return consistency_loss(
            params, frozen, batch, KEY, Rows(0, 256), net=net, cfg=cfg, times=times
        )

    zero, other = ({"more": value * jnp.ones((LENGTH, VOCAB))} for value in (0.0, 60.0))
    for direction in ("forward", "reverse"):
        run = jax.jit(jax.value_and_grad(lambda p, q, way=direction: loss(p, q, way)[0]))
        value, slope = run(zero, zero)
        assert value < 1e-6 and np.abs(slope["more"]).max() < 1e-6
        assert run(other, zero)[0] > 0.1


def test_a_span_of_no_time_is_no_distillation():
    """Student and teacher see one state and are told one signal; then their answers are equal."""
    told = lambda params, x, s, t, *, key=None: jnp.log(0.1 + x[..., :VOCAB]) * s[:, None, None]
    net = dataclasses.replace(EXACT, features=told, table=lambda params: jnp.eye(VOCAB + 1)[:VOCAB])
    times = gaussian_times(decoding_clock(VOCAB), 0.1, 0.9)
    for span, low, high in ((1e-7, -1e-6, 1e-6), (0.5, 0.01, 10.0)):
        how = {"net": net, "cfg": ConsistencyConfig(first_span=span), "times": times}
        frozen = Frozen({}, {}, other={})
        loss = consistency_loss({}, frozen, law_batch(256, 0), KEY, Rows(0, 256), **how)[0]
        assert low < loss < high


def test_rounds_double_the_span_and_renew_the_teacher():
    cfg = RoundsConfig(first_span=0.25, round_steps=3)
    spans = [float(cfg.span(step)) for step in (0, 2, 3, 6, 30)]
    np.testing.assert_allclose(spans, [0.25, 0.25, 0.5, 1.0, 1.0])
    optimizer = optax.sgd(0.1)
    seen = []

    def objective(params, frozen, batch, key, rows):
        jax.debug.callback(
            lambda *x: seen.append([float(v) for v in x]),
            params["w"],
            frozen.other["w"],
            frozen.step,
        )
        return params["w"] ** 2, {"counted": jnp.ones(())}

    for average, restart in ((True, True), (False, False)):
        renewal = Renewal(2, average, restart)
        step = jax.jit(
            make_train_step(
                objective, optimizer, seed=0, microbatches=1, ema_decay=0.5, renewal=renewal
            )
        )
        own = {"w": jnp.float32(1.0)}
        state = new_state(own, optimizer, None, AuxiliaryState({"w": jnp.float32(7.0)}, ()))
        seen.clear()
        averages = []
        for _ in range(5):
            averages.append(float(state.ema_params["w"]))
            state = step(state, {}, {"tokens": jnp.zeros((2, 2), jnp.int32)})[0]
        jax.effects_barrier()
        assert [x[2] for x in seen] == [0, 1, 2, 3, 4]
        student, teacher = ([x[k] for x in seen] for k in (0, 1))
        assert teacher[:2] == [7.0, 7.0] and teacher[2] == teacher[3] and teacher[4] != teacher[3]
        assert teacher[2] == (averages[2] if average else student[2])
        assert (student[2] == averages[2]) == restart
