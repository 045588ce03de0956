"""Tokens chosen together by bigrams and trigrams, against the enumeration of all sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.data.bigrams import Bigrams
from flm_jax.data.trigrams import Trigrams
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.bigram import Chain, candidates_of, choose_together, log_gain, log_ratio
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


def _trigrams(rng, kept=0.5):
    """A table of some triples, and r(c | a, b) [V, V, V]."""
    dense = np.zeros((V, V, V), np.float32)
    starts, seconds, places, nexts, ratios, backoff = [0], [], [0], [], [], []
    for a in range(V):
        for b in range(V):
            own = np.flatnonzero(rng.random(V) < kept)
            if rng.random() < 0.3 or not own.size or a == 0:
                continue  # no such pair: bigrams alone
            backoff.append(rng.normal())
            dense[a, b] = backoff[-1]
            dense[a, b, own] = rng.normal(size=own.size)
            seconds.append(b)
            nexts += list(own)
            ratios += list(dense[a, b, own])
            places.append(len(nexts))
        starts.append(len(seconds))
    ids = [np.int32(x) for x in (starts, seconds, places, nexts)]
    return Trigrams(*map(jnp.asarray, (*ids, np.float32(ratios), np.float32(backoff)))), dense


def _chain(rng, order, candidates, weight=1.3):
    """A chain of links of `order` tokens, and the sum of its links of a sequence."""
    table, dense = _bigrams(rng)
    chain = Chain(table, weight, candidates)
    triples, dense3 = _trigrams(rng)
    if order == 3:
        chain = chain._replace(trigrams=triples, trigram_weight=1.7)

    def links(x, free):
        total = sum(weight * dense[x[i - 1], x[i]] for i in range(1, L) if all(free[i - 1 : i + 1]))
        if order == 3:
            rows = [i for i in range(2, L) if all(free[i - 2 : i + 1])]
            total += sum(1.7 * dense3[x[i - 2], x[i - 1], x[i]] for i in rows)
        return total

    return chain, links


def _law(logits, links, temperature=1.0, held=None):
    """All sequences and their probabilities under the chain."""
    logs = np.asarray(jax.nn.log_softmax(logits), np.float64)
    found = {}
    for x in itertools.product(range(V), repeat=L):
        score = sum(logs[i, x[i]] for i in range(L))
        # A prescribed token has no link: its neighbours' distributions know it.
        score += links(x, [i not in (held or {}) for i in range(L)])
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


def test_triples_are_found_and_others_have_the_rest_of_their_pair():
    table, dense = _trigrams(np.random.default_rng(1))
    assert len(table.seconds) > V and np.all(dense[0] == 0.0)
    a, b, c = jnp.meshgrid(*3 * [jnp.arange(V)], indexing="ij")
    np.testing.assert_array_equal(log_gain(table, a, b, c), dense)
    np.testing.assert_array_equal(log_gain(table, a[..., :1], b[..., :1], c), dense)
    empty = [x[:0] for x in (table.seconds, table.nexts, table.ratios, table.backoff)]
    none = Trigrams(table.starts * 0, empty[0], table.places[:1], *empty[1:])
    np.testing.assert_array_equal(log_gain(none, a, b, c), 0 * dense)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("held", [None, {1: 3}, {3: 0}])
def test_temperature_zero_takes_the_most_probable_sequence(held, order):
    rng = np.random.default_rng(2)
    chain, links = _chain(rng, order, V)
    logits = jnp.asarray(rng.normal(size=(16, L, V)), jnp.float32)
    choice = Choice(0.0, 1.0, chain)
    found = _candidates(logits, choice)
    tokens, confidence = choose_together(jax.random.key(0), found, choice, _given(held, 16))
    alone = np.argmax(logits, -1)
    for row in range(16):
        sequences, probs = _law(logits[row], links, held=held)
        best = sequences[int(np.argmax(probs))]
        assert tuple(np.asarray(tokens[row])) == best
        own = np.asarray(jax.nn.softmax(logits[row]))[np.arange(L), list(best)]
        own[list(held or {})] = 1.0
        np.testing.assert_allclose(confidence[row], own, rtol=1e-5)
    assert np.any(alone != np.asarray(tokens))


@pytest.mark.parametrize("order", [2, 3])
def test_fewer_candidates_leave_the_rest_out(order):
    rng = np.random.default_rng(3)
    chain, links = _chain(rng, order, 2)
    logits = jnp.asarray(rng.normal(size=(8, L, V)), jnp.float32)
    choice = Choice(0.0, 1.0, chain)
    found = _candidates(logits, choice)
    tokens, _ = choose_together(jax.random.key(0), found, choice, nothing_given(8, L))
    for row in range(8):
        cut = np.array(logits[row])
        cut[cut < np.sort(cut, axis=-1)[:, -2:-1]] = -1e9
        sequences, probs = _law(jnp.asarray(cut), links)
        assert tuple(np.asarray(tokens[row])) == sequences[int(np.argmax(probs))]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("temperature, held", [(1.0, None), (0.7, {1: 2}), (1.3, {0: 1})])
def test_draws_follow_the_chain(temperature, held, order):
    rng = np.random.default_rng(4)
    rows, candidates = (6_000, 64) if order == 2 else (2_000, 16)  # the cube of them is held
    logits = jnp.asarray(rng.normal(size=(L, V)), jnp.float32)
    chain, links = _chain(rng, order, candidates, weight=0.8)
    choice = Choice(temperature, 1.0, chain)
    found = _candidates(jnp.broadcast_to(logits, (rows, L, V)), choice)
    tokens, _ = choose_together(jax.random.key(5), found, choice, _given(held, rows))
    sequences, probs = _law(logits, links, temperature, held)
    codes = np.asarray(tokens) @ (V ** np.arange(L))
    share = np.bincount(codes, minlength=V**L) / rows
    wanted = np.zeros(V**L)
    wanted[np.array(sequences) @ (V ** np.arange(L))] = probs
    # Total variation of as many exact draws: half the sum of the mean absolute deviations.
    expected = 0.5 * np.sum(np.sqrt(2 * wanted * (1 - wanted) / (np.pi * rows)))
    # 64 candidates leave a bias of about a hundredth.
    assert 0.5 * np.abs(share - wanted).sum() < 1.25 * expected + 0.64 / candidates


def test_a_row_of_two_tokens_has_no_triples():
    rng = np.random.default_rng(8)
    chain, _ = _chain(rng, 3, V)
    logits = jnp.asarray(rng.normal(size=(8, 2, V)), jnp.float32)
    both = []
    for one in (chain, chain._replace(trigrams=None)):
        choice = Choice(0.0, 1.0, one)
        found = candidates_of(jax.random.key(9), jnp.arange(2), logits, choice)
        both.append(choose_together(jax.random.key(0), found, choice, nothing_given(8, 2))[0])
    np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("order", [2, 3])
def test_draws_keep_to_the_nucleus(order):
    chain, _ = _chain(np.random.default_rng(7), order, 16)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.4, 0.3, 0.2, 0.07, 0.03])), (200, L, V))
    choice = Choice(0.8, 0.7, chain)
    found = _candidates(logits, choice)
    tokens, _ = choose_together(jax.random.key(0), found, choice, nothing_given(200, L))
    assert set(np.unique(tokens)) == {0, 1}


def test_without_weight_the_tokens_are_those_of_each_position():
    rng = np.random.default_rng(6)
    chain, _ = _chain(rng, 3, V)
    logits = jnp.asarray(rng.normal(size=(8, L, V)), jnp.float32)
    choice = Choice(0.0, 1.0, chain._replace(weight=0.0, trigram_weight=0.0))
    found = _candidates(logits, choice)
    tokens, _ = choose_together(jax.random.key(0), found, choice, nothing_given(8, L))
    np.testing.assert_array_equal(tokens, jnp.argmax(logits, -1))
