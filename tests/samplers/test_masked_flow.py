"""The sampler of masked language flows: promotion, context guidance, given tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.denoiser.head import Readout
from flm_jax.samplers import masked_flow
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.masked_flow import MaskedFlowConfig, sample_masked_flow
from flm_jax.samplers.masked_flow_draws import make_draws
from flm_jax.samplers.promotion import promoted
from helpers.masked_flow import FLOW, KEY, NET, PARAMS, TOKENS


# Sampling, by a network of known answers: at position l token l, of given confidence.
def oracle(confidence, seen=None):
    """Ends of bridges that do not depend on z; `confidence` [L] of token l at position l."""
    length, vocab = len(confidence), 8
    probs = np.repeat((1 - np.array([confidence]).T) / (vocab - 1), vocab, axis=1)
    probs[np.arange(length), np.arange(length)] = confidence
    logits = jnp.asarray(np.log(np.maximum(probs, 1e-30)), jnp.float32)

    def features(params, x_s, s, t, *, key=None):
        lift = 0.0 if seen is None else seen(x_s)
        return jnp.broadcast_to(logits[None] + lift, (*x_s.shape[:2], vocab))

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(vocab), jnp.zeros(vocab)),
        table=lambda params: jnp.eye(vocab),
        vocab_size=vocab,
        dim=vocab,
        max_length=length,
        anchor=lambda params: jnp.full((length, vocab), 0.1),
    )


PLAIN = {"spacing": "uniform", "last_call": False, "reuse": True, "temperature": 0.0}


def draw(net, given=None, steps=8, key=KEY, **how):
    how = PLAIN | how
    given = nothing_given(2, net.max_length) if given is None else given
    run = lambda key: sample_masked_flow(
        key, net, {}, flow=FLOW, steps=steps, given=given, how=MaskedFlowConfig(**how)
    )
    return jax.jit(run)(key)


def test_without_promotion_all_steps_are_taken():
    out = draw(oracle([1.0, 0.9, 0.8, 0.7]))  # confidence 1 does not promote either
    assert out.tokens.tolist() == [[0, 1, 2, 3]] * 2
    assert int(out.calls) == 8 and out.steps_tokens.shape == (8, 2, 4)
    np.testing.assert_allclose(out.steps_confidence[0, 0], [1.0, 0.9, 0.8, 0.7], rtol=1e-5)


def test_promotion_stops_the_walk():
    out = draw(oracle([0.99, 0.97, 0.99, 0.96]), promote=0.05)
    assert int(out.calls) == 1 and out.tokens.tolist() == [[0, 1, 2, 3]] * 2
    assert int(draw(oracle([0.99, 0.97, 0.5, 0.96]), promote=0.05).calls) == 8
    np.testing.assert_array_equal(out.steps_tokens, np.broadcast_to(out.tokens, (8, 2, 4)))


def test_promoted_tokens_are_seen_as_context():
    """Position 1 becomes sure once position 0 shows its clean embedding."""

    def seen(x):
        clean = jnp.all(x[:, 0] == jnp.eye(8)[:1], axis=-1)
        return jnp.zeros((x.shape[0], 2, 8)).at[:, 1, 1].add(9.0 * clean)

    out = draw(oracle([0.99, 0.5], seen), promote=0.05)
    assert int(out.calls) == 2 and out.tokens.tolist() == [[0, 1]] * 2


def test_given_tokens_are_kept():
    given = Given(jnp.array([[5, 0, 0, 7]]), jnp.array([[True, False, False, True]]))
    out = draw(oracle([0.9] * 4), given, promote=0.2)
    assert out.tokens.tolist() == [[5, 1, 2, 7]] and int(out.calls) == 1
    everything = Given(given.tokens, jnp.ones((1, 4), bool))
    assert int(draw(oracle([0.9] * 4), everything).calls) == 0


@pytest.mark.parametrize(
    "eos, want",
    [
        ("free", [True, False, True, True]),
        ("ordered", [True, False, False, True]),
        ("never", [True, False, False, True]),
    ],
)
def test_policies_of_the_end(eos, want):
    tokens, confidence = jnp.array([[1, 2, 7, 3]]), jnp.array([[0.99, 0.5, 0.99, 0.99]])
    rule = dict(threshold=0.95, least=0, eos=eos, eos_id=7)
    hidden = jnp.ones((1, 4), bool)
    got = promoted(tokens, confidence, hidden, **rule)
    assert got.tolist() == [want]
    filled = promoted(tokens, confidence, hidden.at[0, 1].set(False), **rule)
    assert bool(filled[0, 2]) == (eos != "never")


def test_no_guidance_is_bit_for_bit_the_plain_sampler_and_guidance_is_not():
    given = Given(TOKENS[:2], jnp.arange(6)[None] < jnp.array([[2], [3]]))
    run = lambda w: jax.jit(
        lambda key: masked_flow.sample_masked_flow(
            key,
            NET,
            PARAMS,
            flow=FLOW,
            steps=5,
            given=given,
            how=MaskedFlowConfig(context_guidance=w, **PLAIN),
        )
    )(KEY)
    plain, none, some = run(0.0), run(-0.0), run(2.0)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(none)):
        np.testing.assert_array_equal(a, b)
    assert (int(plain.calls), int(some.calls)) == (5, 9)  # the last read-out is not guided
    assert np.abs(plain.steps_confidence - some.steps_confidence).max() > 1e-4


@pytest.mark.parametrize("bad", [{"promote": 1.0}, {"promote": -0.1}, {"eos": "freed"}])
def test_bad_sampling_is_refused(bad):
    with pytest.raises(UserError, match="promote|did you mean 'free'"):
        MaskedFlowConfig(**bad)


# A law of pairs of tokens, and the denoiser that is exact for it.
PAIRS = np.array([[0, 1], [2, 3], [0, 3], [2, 1]])
LAW = np.array([0.90, 0.03, 0.05, 0.02])  # the first token is 0 with probability 0.95


def exact():
    """Posterior of LAW given bridges; a state that equals an embedding is context."""
    table, anchor = jnp.eye(4), jnp.full((2, 4), 0.25)

    def features(params, x_s, s, t, *, key=None):
        now = FLOW.t(s)[:, None, None]
        clean = table[PAIRS]  # [pairs, 2, 4]
        mean = now[..., None] * clean[None] + (1 - now[..., None]) * anchor[None, None]
        gap = jnp.sum((x_s[:, None] - mean) ** 2, axis=-1) / (2 * 0.04 * now * (1 - now))
        same = jnp.sum((x_s[:, None] - clean[None]) ** 2, axis=-1)
        context = jnp.any(jnp.all(x_s[:, :, None] == table[None, None], axis=-1), axis=-1)[:, None]
        evidence = jnp.where(context, jnp.where(same == 0, 0.0, -1e9), -gap)
        weights = jax.nn.softmax(jnp.log(jnp.asarray(LAW))[None] + jnp.sum(evidence, -1), axis=-1)
        probs = jnp.einsum("bp,plv->blv", weights, clean)
        return jnp.log(jnp.maximum(probs, 1e-30))

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(4), jnp.zeros(4)),
        table=lambda params: table,
        vocab_size=4,
        dim=4,
        max_length=2,
        anchor=lambda params: anchor,
    )


def total_variation(tokens):
    share = np.mean(np.all(np.asarray(tokens)[:, None] == PAIRS[None], axis=-1), axis=0)
    return (np.abs(share - LAW).sum() + 1 - share.sum()) / 2


def test_promotion_errs_by_at_most_eps_times_length_on_a_solvable_law():
    given, eps = nothing_given(8192, 2), 0.06
    plain = draw(exact(), given, steps=48)
    assert total_variation(plain.tokens) < 0.02
    out = draw(exact(), given, steps=48, promote=eps)
    assert (np.asarray(out.tokens)[:, 0] == 0).all()  # 0.95 sure at once
    assert 0.03 < total_variation(out.tokens) <= eps * 2
    assert int(out.calls) < int(plain.calls)


def test_runs_promote_one_token_at_least_and_are_run_anew():
    how = {"promotion": "runs", "promote": 0.2, "last_call": True}
    out = draw(oracle([0.9, 0.5, 0.85, 0.6]), steps=3, **how)
    assert out.tokens.tolist() == [[0, 1, 2, 3]] * 2
    # 0 and 2 in the first run, then 3, then 1: three runs of three steps and a read-out.
    assert int(out.calls) == 12 and out.steps_tokens.shape == (4, 2, 4)
    assert int(draw(oracle([0.9, 0.5, 0.85, 0.6]), steps=3, promotion="runs").calls) == 3
    ends = draw(oracle([0.9, 0.85, 0.81, 0.99]), steps=3, **how)
    assert int(ends.calls) == 4


def test_a_step_moves_by_a_call_that_sees_what_it_promoted():
    embeddings = jnp.eye(8)

    def seen(x_s):  # position 1 is certain of token 5 once position 0 is context
        context = jnp.all(x_s[:, 0] == embeddings[:1], axis=-1)
        return jnp.where(context[:, None, None], 1e3 * jax.nn.one_hot(5, 8), 0.0)

    net = oracle([0.99, 0.5], seen=lambda x_s: jnp.pad(seen(x_s), ((0, 0), (1, 0), (0, 0))))
    calls = lambda **how: int(draw(net, steps=4, promote=0.05, **how).calls)
    assert calls() == 2  # position 1 is sure in the second step
    assert calls(reuse=False) == 3


def test_last_tokens_are_drawn_at_their_temperature():
    given = nothing_given(4000, 2)
    out = draw(oracle([0.7, 0.9]), given, steps=2, temperature=1.0)
    share = np.mean(np.asarray(out.tokens) == np.arange(2), axis=0)
    np.testing.assert_allclose(share, [0.7, 0.9], atol=0.03)
    sharp = draw(oracle([0.7, 0.9]), given, steps=2, temperature=0.25)
    odds = (0.7 / (0.3 / 7)) ** 4
    np.testing.assert_allclose(
        np.mean(np.asarray(sharp.tokens)[:, 0] == 0), odds / (odds + 7), atol=0.01
    )


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"spacing": "law", "lowest": 10.0}, "expected a gamma from -10.0, the law's lowest"),
        ({"spacing": "law", "lowest": -12.0}, "expected a gamma from -10.0, the law's lowest"),
        ({"lowest": -6.0}, "it covers all of gamma"),
        ({"first_quantile": 0.5}, "it covers all of gamma"),
    ],
)
def test_times_outside_of_the_law_are_refused(bad, message):
    with pytest.raises(UserError, match=message):
        masked_flow.make_mesh(FLOW, 4, MaskedFlowConfig(**PLAIN | bad))


def test_every_draw_has_a_key_of_its_own():
    given = nothing_given(2, 4)
    draws = make_draws(KEY, NET, jnp.eye(16), FLOW, given, 3, 1.0)
    found = [draws.start(run) for run in range(2)]
    found += [of(run, k) for of in (draws.walk, draws.context) for run in (0, 1) for k in range(3)]
    sums = [float(jnp.sum(x)) for x in found]
    assert len(set(sums)) == len(sums) == 14
    out = Readout(jnp.zeros((2, 4, 16)), jnp.zeros((16, 64)), jnp.zeros(64))
    net = dataclasses.replace(NET, vocab_size=64)
    draws = make_draws(KEY, net, jnp.ones((64, 16)), FLOW, given, 3, 1.0)
    first, second = (draws.pick(run, out)[0] for run in (0, 1))
    assert (first != second).any()
