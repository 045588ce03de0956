"""Masked diffusion decoded as a flow: closed forms, invariants, an exact network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.load import Model
from flm_jax.build.sampler import choose_sampler, make_sampler
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.data.tasks.registry import make_task
from flm_jax.denoiser.forward import denoise
from flm_jax.flows.masking import masked_states
from flm_jax.inference import engine
from flm_jax.models.dit import DiTConfig, dit
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.samplers import x_prediction
from flm_jax.samplers.base import Given, Share, nothing_given
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.masked_diffusion import sample_confident
from flm_jax.samplers.windows import BlocksConfig
from flm_jax.samplers.x_prediction import XPredictionConfig, sample_x_prediction

LENGTH, VOCAB = 8, 11
LLAMA = llama(LlamaConfig(VOCAB, LENGTH, 16, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True))
DIT = dit(
    DiTConfig(
        vocab_size=VOCAB,
        length=LENGTH,
        dim=16,
        depth=1,
        heads=2,
        cond_dim=8,
        mlp_ratio=2,
        dropout=0.0,
        two_time=False,
        attention_softcap=0.0,
        logit_softcap=0.0,
        dtype="float32",
        remat="none",
        scan_blocks=True,
        anchor=True,
    )
)
NETS = {"llama": LLAMA, "dit": DIT}
TOKENS = jax.random.randint(jax.random.key(3), (4, LENGTH), 0, VOCAB)
# Four rows with 8, 6, 3 and 0 positions to write.
GIVEN = Given(
    TOKENS,
    jnp.array(
        [
            [False] * 8,
            [True, False, False, False, True, False, False, False],
            [True, True, True, False, True, False, True, False],
            [True] * 8,
        ]
    ),
)
OFF = XPredictionConfig(re_edit=False, hard_commit=False)


def random_params(net):
    """Every leaf random: fresh blocks are identities."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


PARAMS = {name: random_params(net) for name, net in NETS.items()}


PLAIN = XPredictionConfig()


def decode(name, steps, given=GIVEN, how=PLAIN, block_length=0, **more):
    how = dataclasses.replace(how, block_length=block_length)
    more = {"time_conditioning": False} | more
    run = lambda given: sample_x_prediction(
        NETS[name], PARAMS[name], steps=steps, given=given, how=how, **more
    )
    return jax.device_get(jax.jit(run)(given))


@pytest.mark.parametrize("name", NETS)
def test_a_whole_step_is_greedy_mask_prediction(name):
    net, params = NETS[name], PARAMS[name]
    out = decode(name, 1, how=dataclasses.replace(OFF, step_size=1.0))
    free, zeros = ~GIVEN.mask, jnp.zeros(4)
    states = masked_states(TOKENS, free, net.table(params), net.anchor(params))
    best = jnp.argmax(jax.jit(lambda s: denoise(net, params, s, zeros, zeros))(states), axis=-1)
    np.testing.assert_array_equal(out.tokens, jnp.where(free, best, TOKENS))
    assert int(out.calls) == 1 and (out.steps_progress == 1.0).all()
    # Nor does a second call that would be allowed change anything: nothing is left.
    again = decode(name, 4, how=dataclasses.replace(OFF, step_size=1.0))
    np.testing.assert_array_equal(again.tokens, out.tokens)
    assert int(again.calls) == 1


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("block_length", [0, 4])
def test_the_hard_commit_alone_is_low_confidence_remasking(name, block_length):
    """One token a step, token for token; rows with fewer free positions end sooner."""
    given = nothing_given(3, LENGTH)._replace(mask=TOKENS[:3] < 0, tokens=TOKENS[:3])
    nowhere = lambda seen: jnp.zeros(seen.shape[:2])
    how = XPredictionConfig(re_edit=False)
    out = decode(name, LENGTH, given, how, stepper=nowhere, block_length=block_length)
    run = lambda: sample_confident(
        jax.random.key(0),
        NETS[name],
        PARAMS[name],
        steps=LENGTH,
        given=given,
        choice=Choice(0.0, 1.0),
        blocks=BlocksConfig(block_length),
        time_conditioning=False,
    )
    want = jax.device_get(jax.jit(run)())
    np.testing.assert_array_equal(out.tokens, want.tokens)
    np.testing.assert_array_equal(out.steps_tokens, want.steps_tokens)
    assert (out.steps_progress.sum(axis=2) == np.arange(1, LENGTH + 1)[:, None]).all()
    partly = decode(name, LENGTH, GIVEN, how, stepper=nowhere)
    left = (partly.steps_progress < 1.0).sum(axis=2)
    free = (~np.asarray(GIVEN.mask)).sum(axis=1)
    np.testing.assert_array_equal(left, np.maximum(free - np.arange(1, 9)[:, None], 0))


SETTINGS = [
    dict(),
    dict(how=XPredictionConfig(step_size=0.5)),
    dict(how=XPredictionConfig(step_size=1.0)),
    dict(how=XPredictionConfig(hard_commit=False)),
    dict(how=XPredictionConfig(step_size=1 / 256, re_edit=False)),
    dict(block_length=2),
    dict(stepper=lambda seen: seen[..., 0], time_conditioning=True),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_progress_stays_in_bounds_and_given_tokens_stay(settings):
    out, given = decode("dit", 8, **settings), np.asarray(GIVEN.mask)
    t = out.steps_progress
    assert (t >= 0.0).all() and (t <= 1.0).all() and (t[:, given] == 1.0).all()
    np.testing.assert_array_equal(out.tokens[given], TOKENS[given])
    for k in range(8):
        np.testing.assert_array_equal(out.steps_tokens[k][given], TOKENS[given])
    assert (t[-1] >= x_prediction.DONE).all()
    np.testing.assert_array_equal(out.steps_tokens[-1], out.tokens)
    assert np.isfinite(out.steps_confidence).all() and int(out.calls) <= 8


@pytest.mark.parametrize("settings", SETTINGS[:1] + SETTINGS[5:] + [dict(steps=Share(1, 2))])
def test_a_row_does_not_depend_on_the_others(settings):
    """Bit for bit, whatever stands beside it, also in rows that take more calls."""
    # Rows 0 and 2 are given as a whole: they never hold the others back.
    rest = jnp.array([0, 2])
    mixed = Given(TOKENS.at[rest].set(TOKENS[rest] // 2), GIVEN.mask.at[rest].set(True))
    settings = {"steps": 8} | settings
    first, second = (decode("llama", given=given, **settings) for given in (GIVEN, mixed))
    assert int(second.calls) <= int(first.calls)
    for got, want in zip(second, first):
        if np.ndim(got):
            got, want = (x if x.ndim == 2 else x.swapaxes(0, 1) for x in (got, want))
            np.testing.assert_array_equal(got[[1, 3]], want[[1, 3]])


# A network whose answers depend on what it sees, known in full: with nothing written position l
# says token 0 with the given confidence; once position 0 shows token 1, position 1 says token 2.
def oracle(confidence, seen=lambda x: 0.0):
    length, vocab = len(confidence), 5
    probs = np.repeat((1 - np.array([confidence]).T) / (vocab - 1), vocab, axis=1)
    probs[:, 0] = confidence
    logits = jnp.asarray(np.log(probs), jnp.float32)
    return Network(
        init=lambda key: {},
        features=lambda params, x, s, t, key=None: jnp.broadcast_to(
            logits[None] + seen(x), (*x.shape[:2], vocab)
        ),
        readout=lambda params: (jnp.eye(vocab), jnp.zeros(vocab)),
        table=lambda params: jnp.eye(vocab),
        vocab_size=vocab,
        dim=vocab,
        max_length=length,
        anchor=lambda params: jnp.full((length, vocab), 0.2),
    )


def walk(net, steps, how, stepper=None, rows=1, **more):
    how = dataclasses.replace(how, block_length=more.pop("block_length", 0))
    given = nothing_given(rows, net.max_length)
    more |= {"steps": steps, "given": given, "how": how, "stepper": stepper}
    run = lambda: x_prediction.sample_x_prediction(net, {}, time_conditioning=False, **more)
    return jax.device_get(jax.jit(run)())


def test_progress_follows_the_step_size():
    """1 - t falls by the factor 1 - a each step, and ends the walk at 0.99."""
    out = walk(
        oracle([0.9999, 0.9999]),
        16,
        XPredictionConfig(step_size=0.75, re_edit=False, hard_commit=False),
    )
    want = 1.0 - 0.25 ** np.arange(1, 5)
    np.testing.assert_allclose(out.steps_progress[:4, 0, 0], want, rtol=1e-6)
    assert int(out.calls) == 4  # 1 - 0.25^4 = 0.996
    default = walk(oracle([0.9999] * 2), 6, XPredictionConfig(re_edit=False, hard_commit=False))
    np.testing.assert_allclose(default.steps_progress[2, 0, 0], 0.9, rtol=1e-5)


def test_what_becomes_unlikely_is_edited_again():
    """t = c and y = c E[x] + (1 - c) m, only where confidence falls short by more than 0.1."""
    net = oracle([0.30, 0.95])
    plain = {"steps": 4, "given": nothing_given(1, 2), "time_conditioning": False}
    made = lambda how: x_prediction.decoder(net, {}, how=how, **plain)
    run = jax.jit(lambda: _once(made(XPredictionConfig(re_edit=True, hard_commit=False)), 0.5))
    after = run()
    np.testing.assert_allclose(after.t[0], [0.30, 0.5], rtol=1e-6)  # .30 - .5 < -.1 <= .95 - .5
    table, anchor = jnp.eye(5), jnp.full(5, 0.2)
    np.testing.assert_allclose(after.y[0, 0], 0.3 * table[0] + 0.7 * anchor, rtol=1e-5)
    np.testing.assert_allclose(after.y[0, 1], 0.5 * table[0] + 0.5 * anchor, rtol=1e-5)
    kept = jax.jit(lambda: _once(made(XPredictionConfig(re_edit=False, hard_commit=False)), 0.5))()
    np.testing.assert_allclose(kept.t[0], 0.5, rtol=1e-6)
    committed = jax.jit(lambda: _once(made(XPredictionConfig(re_edit=True)), 0.5))()
    np.testing.assert_allclose(committed.t[0], [0.30, 1.0], rtol=1e-6)


def _once(made, a):
    look = made.look(made.start)
    return made.advance(made.start, look, jnp.full((1, 2), a))


def test_a_written_token_is_taken_back_when_the_context_speaks_against_it():
    """Position 0 is written first, as token 0; once position 1 is written it should be token 3."""

    def seen(x):
        written = (x[:, 1, 0] > 0.99).astype(jnp.float32)
        against = jnp.array([-9.0, 0.0, 0.0, np.log(12.0), 0.0])  # then token 3 has .8
        return jnp.zeros((x.shape[0], 3, 5)).at[:, 0].set(written[:, None] * against[None])

    net = oracle([0.95, 0.93, 0.3], seen)
    nowhere = lambda seen: jnp.zeros(seen.shape[:2])
    kept = walk(net, 4, XPredictionConfig(re_edit=False), nowhere)
    assert kept.tokens.tolist() == [[0, 0, 0]] and int(kept.calls) == 3
    edited = walk(net, 4, XPredictionConfig(re_edit=True), nowhere)
    assert edited.steps_tokens[:, 0, 0].tolist() == [0, 0, 3, 3]
    assert edited.tokens.tolist() == [[3, 0, 0]]


def test_features_of_a_look():
    net = oracle([0.6, 0.92])
    how = {"given": nothing_given(1, 2), "how": XPredictionConfig(), "time_conditioning": False}
    made = x_prediction.decoder(net, {}, steps=5, **how)
    look = jax.jit(lambda: made.look(made.start._replace(made=jnp.array([2]))))()
    four = np.array([0.6, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(look.features[0, 0, :4], four, rtol=1e-5)
    q = four / four.sum()
    want = [-(q * np.log(q)).sum() / np.log(4), 0.5, 0.0, 0.5]
    np.testing.assert_allclose(look.features[0, 0, 4:], want, rtol=1e-5, atol=1e-7)


def test_rho_is_of_the_whole_budget():
    """Two blocks of two calls, of a row whose last position is given: rho does not begin anew."""
    given = Given(jnp.zeros((2, 4), jnp.int32), jnp.array([[False] * 4, [False] * 3 + [True]]))
    how = XPredictionConfig(step_size=1 / 256, hard_commit=False, block_length=2)
    act = lambda key, seen: (jnp.full((2, 4), 1 / 256), seen[:, 0, 7])
    more = dict(steps=4, given=given, how=how, time_conditioning=False)
    roll = lambda: x_prediction.rollout(jax.random.key(0), oracle([0.9] * 4), {}, act, **more)
    found = jax.jit(roll)()
    np.testing.assert_allclose(found.acts[:, 0], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    assert found.calls.tolist() == [4, 4] and (found.acts[:, 0] == found.acts[:, 1]).all()


def test_the_calls_of_a_block_end_it():
    out = walk(
        oracle([0.9] * 4),
        4,
        XPredictionConfig(step_size=1 / 256, hard_commit=False),
        block_length=2,
    )
    assert int(out.calls) == 4
    arrived = (out.steps_progress[:, 0] == 1.0).tolist()
    assert arrived[1] == [True, True, False, False] and arrived[3] == [True] * 4
    assert (out.steps_progress[:2, 0, 2:] == 0.0).all()


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("x_prediction", {"step_size": 2.0}, r"step_size is 2.0; expected a number in \[0, 1\]"),
        ("x_prediction", {"step_size": 0.001}, "1/256 to 1"),
        ("x_prediction", {"temperature": 1.0}, "x_prediction has no 'temperature'"),
        ("confidence", {"step_size": 0.5}, "that is a key of x_prediction"),
        ("ancestral", {"re_edit": False}, "ancestral has no 're_edit'"),
        ("x_predictoin", {}, "did you mean 'x_prediction'"),
        ("euler", {}, "expected ancestral or confidence or remasking or x_prediction"),
        ("x_prediction", {"block_length": 99}, "block_length=99; expected 0"),
        ("x_prediction", {"policy": "p", "step_size": 0.5}, "expected one of them"),
    ],
)
def test_bad_settings_are_refused(name, changes, message):
    config = check(base_config(objective="masked_diffusion"))
    with pytest.raises(UserError, match=message):
        make_sampler(config, DIT, None, 4, choose_sampler(config, name, **changes))


def test_drawn_texts_come_with_progress():
    config = base_config()
    choose(config, objective="masked_diffusion")
    config.data.task = "phrases2"
    task = make_task("phrases2")
    model = Model(check(config), DIT, PARAMS["dit"], None, task.tokenizer, 0)
    settings = dict(steps=4, num=3, seed=0, sampler=XPredictionConfig())
    drawn = engine.draw(model, nothing_given(2, LENGTH), **settings)
    assert drawn.steps_progress.shape == (4, 3, LENGTH)
    model = model._replace(tokenizer=type("T", (), {"decode": lambda self, row: ""})())
    records = list(engine.trajectory(model, drawn))
    assert len(records) == 12 and records[-1]["progress"] == [1.0] * LENGTH
