"""Tokens chosen together by bigrams, against the enumeration of all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.data.bigrams import Bigrams
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.bigram import Chain, candidates_of, choose_together, log_ratio
from flm_jax.samplers.categorical import Choice

V, L = 5, 4


def _bigrams(rng, kept=0.6):
    """A table of some pairs, and r(b | a) [V, V]."""
    dense = np.tile(rng.normal(size=(V, 1)), (1, V)).astype(np.float32)
    backoff = dense[:, 0].copy()
    starts, nexts, ratios = [0], [], []
    for a in range(V):
        own = np.flatnonzero(rng.random(V) < kept) if a else np.zeros(0, int)  # one has no pairs
        dense[a, own] = rng.normal(size=own.size)
        nexts += list(own)
        ratios += list(dense[a, own])
        starts.append(len(nexts))
    parts = (np.int32(starts), np.int32(nexts), np.float32(ratios), backoff)
    return Bigrams(*map(jnp.asarray, parts)), dense


def _law(logits, dense, weight, temperature=1.0, held=None):
    """All sequences and their probabilities under the chain."""
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    found = {}
    for x in itertools.product(range(V), repeat=L):
        score = sum(logs[i, x[i]] for i in range(L))
        # A prescribed token has no link: its neighbours' distributions know it.
        free = [i not in (held or {}) for i in range(L)]
        score += weight * sum(dense[x[i - 1], x[i]] for i in range(1, L) if free[i - 1] and free[i])
        if held is None or all(x[i] == token for i, token in held.items()):
            # A prescribed token has no distribution of its own.
            score -= sum(logs[i, x[i]] for i in (held or {}))
            found[x] = score / temperature
    values = np.exp(np.array(list(found.values())) - max(found.values()))
    return list(found), values / values.sum()


def _candidates(logits, choice):
    return candidates_of(jax.random.key(9), jnp.arange(L), logits, choice)


def _given(held, rows):
    given = nothing_given(rows, L)
    for place, token in (held or {}).items():
        given = Given(given.tokens.at[:, place].set(token), given.mask.at[:, place].set(True))
    return given


def test_bisection_finds_every_pair_and_nothing_else():
    table, dense = _bigrams(np.random.default_rng(1))
    before, after = jnp.meshgrid(jnp.arange(V), jnp.arange(V), indexing="ij")
    np.testing.assert_array_equal(log_ratio(table, before, after), dense)
    empty = table._replace(starts=table.starts * 0, nexts=table.nexts[:0], ratios=table.ratios[:0])
    np.testing.assert_array_equal(log_ratio(empty, before, after)[:, 0], table.backoff)


@pytest.mark.parametrize("held", [None, {1: 3}])
def test_temperature_zero_takes_the_most_probable_sequence(held):
    rng = np.random.default_rng(2)
    table, dense = _bigrams(rng)
    logits = jnp.asarray(rng.normal(size=(16, L, V)), jnp.float32)
    choice = Choice(0.0, 1.0, Chain(table, 1.3, V))
    found = _candidates(logits, choice)
    tokens, confidence = choose_together(jax.random.key(0), found, choice, _given(held, 16))
    alone = np.argmax(logits, -1)
    for row in range(16):
        sequences, probs = _law(logits[row], dense, 1.3, held=held)
        best = sequences[int(np.argmax(probs))]
        assert tuple(np.asarray(tokens[row])) == best
        own = np.asarray(jax.nn.softmax(logits[row]))[np.arange(L), list(best)]
        own[list(held or {})] = 1.0
        np.testing.assert_allclose(confidence[row], own, rtol=1e-5)
    assert np.any(alone != np.asarray(tokens))


def test_fewer_candidates_leave_the_rest_out():
    rng = np.random.default_rng(3)
    table, dense = _bigrams(rng)
    logits = jnp.asarray(rng.normal(size=(8, L, V)), jnp.float32)
    choice = Choice(0.0, 1.0, Chain(table, 2.0, 2))
    found = _candidates(logits, choice)
    tokens, _ = choose_together(jax.random.key(0), found, choice, nothing_given(8, L))
    for row in range(8):
        cut = np.array(logits[row])
        cut[cut < np.sort(cut, axis=-1)[:, -2:-1]] = -1e9
        sequences, probs = _law(jnp.asarray(cut), dense, 2.0)
        assert tuple(np.asarray(tokens[row])) == sequences[int(np.argmax(probs))]


@pytest.mark.parametrize("temperature, held", [(1.0, None), (0.7, {1: 2})])
def test_draws_follow_the_chain(temperature, held):
    rng = np.random.default_rng(4)
    table, dense = _bigrams(rng)
    rows, logits = 6_000, jnp.asarray(rng.normal(size=(L, V)), jnp.float32)
    choice = Choice(temperature, 1.0, Chain(table, 0.8, 64))
    found = _candidates(jnp.broadcast_to(logits, (rows, L, V)), choice)
    tokens, _ = choose_together(jax.random.key(5), found, choice, _given(held, rows))
    sequences, probs = _law(logits, dense, 0.8, temperature, held)
    codes = np.asarray(tokens) @ (V ** np.arange(L))
    share = np.bincount(codes, minlength=V**L) / rows
    wanted = np.zeros(V**L)
    wanted[np.array(sequences) @ (V ** np.arange(L))] = probs
    # Total variation of as many exact draws: half the sum of the mean absolute deviations.
    expected = 0.5 * np.sum(np.sqrt(2 * wanted * (1 - wanted) / (np.pi * rows)))
    # 64 candidates leave a bias of about a hundredth.
    assert 0.5 * np.abs(share - wanted).sum() < 1.25 * expected + 0.01


def test_draws_keep_to_the_nucleus():
    rng = np.random.default_rng(7)
    table, _ = _bigrams(rng)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.07, 0.03])), (200, L, V))
    choice = Choice(0.8, 0.7, Chain(table, 1.0, 16))
    found = _candidates(logits, choice)
    tokens, _ = choose_together(jax.random.key(0), found, choice, nothing_given(200, L))
    assert set(np.unique(tokens)) == {0, 1}


def test_without_weight_the_tokens_are_those_of_each_position():
    rng = np.random.default_rng(6)
    table, _ = _bigrams(rng)
    logits = jnp.asarray(rng.normal(size=(8, L, V)), jnp.float32)
    choice = Choice(0.0, 1.0, Chain(table, 0.0, V))
    found = _candidates(logits, choice)
    tokens, _ = choose_together(jax.random.key(0), found, choice, nothing_given(8, L))
    np.testing.assert_array_equal(tokens, jnp.argmax(logits, -1))
