"""Baselines against closed forms: likelihoods and samplers of exact networks, drawing of tokens."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.network import Network
from flm_jax.flows.masking import highest, random_subset
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss
from flm_jax.metrics.likelihood import likelihood, make_autoregressive_nll, make_masked_nll
from flm_jax.samplers import masked_diffusion
from flm_jax.samplers.autoregressive import sample_autoregressive
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.categorical import Choice, choose, gumbel, keep_top

KEY = jax.random.key(7)
PLAIN = Choice()

# A law over sequences of 4 tokens out of 3, with repeated words so that order of revealing matters.
SEQUENCES = np.array(
    [[0, 1, 2, 0], [0, 1, 0, 0], [2, 2, 1, 0], [1, 0, 2, 2], [2, 1, 2, 0]], np.int32
)
LAW = np.array([0.4, 0.25, 0.15, 0.12, 0.08])
VOCAB, LENGTH = 3, 4
ENTROPY = float(-np.sum(LAW * np.log(LAW))) / LENGTH


def exact_masked_network():
    """The posterior of LAW given the visible tokens, in closed form; the state tells them exactly.

    Table and anchors are unit vectors of R^4, the features are the log posterior itself.
    """

    def features(params, x_s, s, t, *, key=None):
        del params, s, t, key
        masked = x_s[:, None, :, VOCAB] > 0.5
        match = jnp.take_along_axis(x_s[:, None], jnp.asarray(SEQUENCES)[None, :, :, None], axis=3)
        agrees = jnp.all(masked | (match[..., 0] > 0.5), axis=2)
        weights = agrees * jnp.asarray(LAW, jnp.float32)[None]
        onehot = jax.nn.one_hot(jnp.asarray(SEQUENCES), VOCAB)
        marginal = jnp.einsum("bn,nlv->blv", weights, onehot)
        return jnp.log(jnp.maximum(marginal / jnp.sum(marginal, -1, keepdims=True), 1e-30))

    unit = jnp.eye(VOCAB + 1)
    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: unit[:VOCAB],
        vocab_size=VOCAB,
        dim=VOCAB + 1,
        max_length=LENGTH,
        anchor=lambda params: jnp.tile(unit[VOCAB:], (LENGTH, 1)),
    )


EXACT = exact_masked_network()


def law_batch(rows, seed):
    index = np.random.default_rng(seed).choice(len(LAW), size=rows, p=LAW)
    return {"tokens": jnp.asarray(SEQUENCES[index]), "mask": jnp.ones((rows, LENGTH), bool)}


def test_nelbo_of_the_exact_denoiser_is_the_entropy():
    """Its training loss, within 4 standard errors of 64 batches (about 1% of it)."""

    @jax.jit
    def loss(batch, key):
        rows = Rows(0, 256)
        return masked_loss({}, batch, key, net=EXACT, cfg=MaskedConfig(), rows=rows)[0]

    values = [float(loss(law_batch(256, i), jax.random.fold_in(KEY, i))) for i in range(64)]
    error = np.std(values) / np.sqrt(len(values))
    assert error < 0.02 * ENTROPY
    assert abs(np.mean(values) - ENTROPY) < 4 * error


def test_likelihood_bound_of_the_exact_denoiser_is_the_entropy():
    """Within 4 of its own standard errors; these under 1% of it."""
    row_nll = jax.jit(make_masked_nll(EXACT, MaskedConfig()))
    batches = [law_batch(512, i) for i in range(4)]
    found = likelihood(row_nll, {}, batches, draws=32)
    assert found.standard_error < 0.015 * ENTROPY
    assert abs(found.nats_per_token - ENTROPY) < 4 * found.standard_error
    assert (found.tokens, found.sequences, found.draws) == (2048 * LENGTH, 2048, 32)
    np.testing.assert_allclose(found.perplexity, np.exp(found.nats_per_token))


def test_a_wrong_denoiser_has_a_larger_bound():
    """Tempered logits (cap of 1): the bound is above the entropy, which the exact one attains."""
    flat = dataclasses.replace(EXACT, logit_softcap=1.0)
    row_nll = jax.jit(make_masked_nll(flat, MaskedConfig()))
    assert likelihood(row_nll, {}, [law_batch(512, 0)], draws=8).nats_per_token > 1.5 * ENTROPY


def test_positions_that_do_not_count_change_no_bound():
    """Rows without a valid token are named; of others the valid tokens alone are averaged."""
    row_nll = jax.jit(make_masked_nll(EXACT, MaskedConfig()))
    batch, tau = law_batch(96, 0), jnp.zeros(96)
    count = np.repeat([4, 2, 0], 32)
    part = batch | {"mask": jnp.arange(LENGTH)[None] < count[:, None]}
    nll, valid = row_nll({}, part, tau, KEY)
    assert valid.tolist() == (count > 0).tolist()
    marginals = np.array(
        [[LAW[SEQUENCES[:, i] == v].sum() for v in range(VOCAB)] for i in range(4)]
    )
    each = -np.log(marginals[np.arange(4)[None], np.asarray(batch["tokens"])])  # all are hidden
    want = (each * np.asarray(part["mask"])).sum(axis=1) / np.maximum(count, 1)
    np.testing.assert_allclose(nll, want, rtol=1e-5)


CHAIN = np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.5, 0.25, 0.25]])
FIRST = np.array([0.6, 0.3, 0.1])


def exact_chain():
    """A causal network that is the Markov chain (FIRST, CHAIN); the state is the token's unit."""
    first, step = jnp.log(jnp.asarray(FIRST)), jnp.log(jnp.asarray(CHAIN))

    def features(params, x_s, s, t, *, key=None):
        del params, s, t, key
        start = jnp.broadcast_to(first, (x_s.shape[0], 1, VOCAB))
        return jnp.concatenate([start, x_s[:, :-1] @ step], axis=1).astype(jnp.float32)

    def extend(params, cache, x_BD, position):
        del params
        row = jnp.where(position == 0, first[None], x_BD @ step)
        return row[:, None].astype(jnp.float32), cache

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(VOCAB), jnp.zeros(VOCAB)),
        table=lambda params: jnp.eye(VOCAB),
        vocab_size=VOCAB,
        dim=VOCAB,
        max_length=LENGTH,
        cache=lambda rows, length: {},
        extend=extend,
    )


def test_likelihood_of_an_exact_chain_is_its_entropy():
    """Every sequence as often as the chain has it, by weights: to 1e-5; masked tokens left out."""
    every = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)), np.int32)
    law = FIRST[every[:, 0]] * np.prod(CHAIN[every[:, :-1], every[:, 1:]], axis=1)
    entropy = -np.sum(law * np.log(law))
    row_nll = jax.jit(make_autoregressive_nll(exact_chain()))
    batch = {"tokens": jnp.asarray(every), "mask": jnp.ones(every.shape, bool)}
    nll, _ = row_nll({}, batch, jnp.zeros(len(every)), KEY)
    np.testing.assert_allclose(np.sum(law * np.asarray(nll)) * LENGTH, entropy, rtol=1e-5)
    found = likelihood(row_nll, {}, [batch])
    np.testing.assert_allclose(found.nats_per_token, -np.mean(np.log(law)) / LENGTH, rtol=1e-5)
    half = batch | {"mask": jnp.arange(LENGTH)[None] < jnp.full((len(every), 1), 2)}
    pair = FIRST[every[:, 0]] * CHAIN[every[:, 0], every[:, 1]]
    found = likelihood(row_nll, {}, [half])
    np.testing.assert_allclose(found.nats_per_token, -np.mean(np.log(pair)) / 2, rtol=1e-5)
    assert found.tokens == 2 * len(every)


def test_samples_of_the_exact_chain_follow_it():
    """Total variation over the 9 pairs of the first tokens at most 0.02 in 20,000 samples."""
    given = nothing_given(20_000, 2)
    draw = jax.jit(lambda: sample_autoregressive(KEY, exact_chain(), {}, given=given, choice=PLAIN))
    out = draw()
    share = np.zeros((VOCAB, VOCAB))
    np.add.at(share, tuple(np.asarray(out.tokens).T), 1 / 20_000)
    assert np.abs(share - FIRST[:, None] * CHAIN).sum() / 2 < 0.02
    assert int(out.calls) == 2


def variation(tokens):
    """Total variation of samples from LAW."""
    tokens = np.asarray(tokens)
    share = [(tokens == row).all(axis=1).mean() for row in SEQUENCES]
    return (np.abs(share - LAW).sum() + 1 - sum(share)) / 2


def masked_draw(given, steps, method=masked_diffusion.sample_ancestral, choice=PLAIN, **more):
    run = lambda: method(KEY, EXACT, {}, steps=steps, given=given, choice=choice, **more)
    return jax.device_get(jax.jit(run)())


def test_ancestral_samples_of_the_exact_denoiser():
    """Many steps draw the law (TV below 0.03 of 4,000 samples); one step draws the marginals."""
    free = nothing_given(4000, LENGTH)
    assert variation(masked_draw(free, 256).tokens) < 0.03
    one = masked_draw(free, 1)
    marginals = np.zeros(len(LAW))
    for i, row in enumerate(SEQUENCES):
        marginals[i] = np.prod([LAW[SEQUENCES[:, j] == row[j]].sum() for j in range(LENGTH)])
    share = [(one.tokens == row).all(axis=1).mean() for row in SEQUENCES]
    np.testing.assert_allclose(share, marginals, atol=0.03)
    assert one.calls == 1


def test_steps_that_reveal_nothing_make_no_call():
    """A row of 4 tokens takes at most 4 calls however many steps; many rows take them all."""
    alone = masked_draw(nothing_given(1, LENGTH), 64)
    assert 1 <= alone.calls <= LENGTH
    assert masked_draw(nothing_given(512, LENGTH), 16).calls == 16
    done = Given(jnp.asarray(SEQUENCES), jnp.ones(SEQUENCES.shape, bool))
    held = masked_draw(done, 4)
    assert held.calls == 0
    np.testing.assert_array_equal(held.tokens, SEQUENCES)


def test_confident_samples_reveal_the_same_number_each_step():
    free = nothing_given(512, LENGTH)
    out = masked_draw(free, LENGTH, masked_diffusion.sample_confident)
    valid = [(out.tokens == row).all(axis=1) for row in SEQUENCES]
    assert np.any(valid, axis=0).all(), "one token a step, exact posterior: always valid"
    known = (out.steps_confidence == 1.0).sum(axis=2)
    assert (np.diff(known, axis=0) >= 1).all() or out.calls == LENGTH
    two = masked_draw(free, 2, masked_diffusion.sample_confident)
    assert two.calls == 2


def test_blocks_are_written_in_turn():
    """With blocks of 2 and 2 steps, the first call settles the first block alone."""
    free = nothing_given(256, LENGTH)
    out = masked_draw(free, 2, masked_diffusion.sample_confident, block_length=2)
    np.testing.assert_array_equal(out.steps_tokens[1][:, :2], out.steps_tokens[0][:, :2])
    assert (out.steps_tokens[1][:, 2:] != out.steps_tokens[0][:, 2:]).any()
    np.testing.assert_array_equal(out.steps_confidence[1][:, :2], 1.0)
    np.testing.assert_array_equal(out.tokens, out.steps_tokens[1])
    with pytest.raises(UserError, match="3 steps do not divide over 2 blocks.*multiple of 2"):
        masked_draw(free, 3, masked_diffusion.sample_confident, block_length=2)


@pytest.mark.parametrize(
    "method", [masked_diffusion.sample_ancestral, masked_diffusion.sample_confident]
)
def test_given_tokens_are_held_and_conditioned_on(method):
    """Last token 2: of LAW only [1, 0, 2, 2] ends so, and the prefix must follow from it."""
    tokens = jnp.tile(jnp.asarray([[0, 0, 0, 2]]), (200, 1))
    mask = jnp.tile(jnp.asarray([[False, False, False, True]]), (200, 1))
    out = masked_draw(Given(tokens, mask), 2, method)
    np.testing.assert_array_equal(out.tokens, np.tile([1, 0, 2, 2], (200, 1)))
    assert (out.steps_tokens[:, :, 3] == 2).all()
    # Held, not only likely: also where the network would write something else there.
    flat = dataclasses.replace(EXACT, logit_softcap=1e-3)
    given = Given(tokens, mask)
    out = jax.jit(lambda: method(KEY, flat, {}, steps=2, given=given, choice=PLAIN))()
    assert (out.tokens[:, 3] == 2).all() and (out.steps_tokens[:, :, 3] == 2).all()
    assert len(np.unique(out.tokens[:, :3])) == VOCAB


def test_the_progress_is_told_where_it_was_trained():
    """A network that writes 1 from progress 0.5 on and 0 before: the second of two steps."""

    def features(params, x_s, s, t, *, key=None):
        del params, t, key
        later = 50.0 * jnp.stack([s < 0.5, s >= 0.5, s < 0.0], axis=-1).astype(jnp.float32)
        return jnp.broadcast_to(later[:, None], (*x_s.shape[:2], VOCAB))

    net = dataclasses.replace(EXACT, features=features)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(conditioned):
        options = dict(steps=2, given=nothing_given(64, LENGTH), choice=PLAIN)
        return masked_diffusion.sample_ancestral(
            KEY, net, {}, time_conditioning=conditioned, **options
        )

    assert (draw(False).tokens == 0).all()
    told = draw(True)
    seen = told.steps_confidence == 1.0
    assert 0.4 < float(told.tokens.mean()) < 0.6 and seen.any()


@pytest.mark.parametrize("seed", range(3))
def test_subsets_have_their_size_and_are_uniform(seed):
    count = jnp.asarray([0, 1, 3, 5] * 500)
    chosen = np.asarray(random_subset(jax.random.key(seed), count, 5))
    np.testing.assert_array_equal(chosen.sum(axis=1), count)
    np.testing.assert_allclose(chosen[2::4].mean(axis=0), 0.6, atol=0.1)


def test_highest_takes_the_best_of_those_allowed():
    scores = jnp.asarray([[0.1, 0.9, 0.5, 0.7]])
    among = jnp.asarray([[True, False, True, True]])
    for count, want in ((0, []), (1, [3]), (2, [2, 3]), (9, [0, 2, 3])):
        got = highest(scores, among, jnp.asarray([count]))
        assert np.flatnonzero(got[0]).tolist() == want


def test_top_p_keeps_the_smallest_sufficient_set():
    probs = jnp.asarray([0.1, 0.4, 0.2, 0.3])
    for top_p, want in ((0.05, [1]), (0.4, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.95, range(4))):
        kept = np.isfinite(keep_top(jnp.log(probs), top_p))
        assert np.flatnonzero(kept).tolist() == sorted(want), top_p
    even = np.isfinite(keep_top(jnp.zeros((2, 4)), 0.5))
    np.testing.assert_array_equal(even, [[True, True, False, False]] * 2)


def test_temperature_and_top_p_shape_the_draws():
    """Frequencies of 50,000 draws within 0.01 of softmax(logits / T), inside the nucleus."""
    probs = jnp.asarray([0.1, 0.4, 0.2, 0.3])
    many = jnp.broadcast_to(jnp.log(probs), (50_000, 4))
    share = lambda choice: np.bincount(choose(KEY, many, choice)[0], minlength=4) / 50_000
    np.testing.assert_allclose(share(PLAIN), probs, atol=0.01)
    np.testing.assert_allclose(share(Choice(0.5)), probs**2 / jnp.sum(probs**2), atol=0.01)
    np.testing.assert_allclose(share(Choice(1.0, 0.6)), [0, 4 / 7, 0, 3 / 7], atol=0.01)
    tokens, confidence = choose(KEY, many, Choice(0.5))
    np.testing.assert_allclose(confidence, probs[tokens], rtol=1e-5)


def test_temperature_to_zero_is_greedy():
    values = jax.random.normal(KEY, (64, 11))
    for temperature in (0.0, 1e-4):
        tokens = choose(KEY, values, Choice(temperature))[0]
        np.testing.assert_array_equal(tokens, jnp.argmax(values, axis=-1))
    assert (choose(KEY, values, PLAIN)[0] != jnp.argmax(values, axis=-1)).any()


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """8,192 tokens e^-14 as probable as the other: within 4 standard deviations in 8 M chances."""
    count, draws = 8192, 1024
    values = jnp.concatenate([jnp.zeros((1,)), jnp.full((count,), -14.0)])
    tokens = choose(KEY, jnp.broadcast_to(values, (draws, count + 1)), PLAIN)[0]
    share = count / (count + np.exp(14.0))
    assert abs(int((tokens > 0).sum()) - draws * share) < 4 * np.sqrt(draws * share)


def test_the_noise_is_fine_where_it_is_large():
    """The largest 1,000 of 4 M are distinct: of 23 bits, many equal others."""
    noise = np.sort(np.asarray(gumbel(KEY, (1 << 22,))))
    assert len(np.unique(noise[-1000:])) > 990
    np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=0.003)
    coarse = np.sort(np.asarray(jax.random.gumbel(KEY, (1 << 22,), mode="low")))
    assert len(np.unique(coarse[-1000:])) < 850


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected 0"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a share"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a share"),
    ],
)
def test_bad_choices_are_refused(choice, message):
    with pytest.raises(UserError, match=message):
        Choice(**choice)
