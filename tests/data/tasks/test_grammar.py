"""Sentences of a grammar: likelihoods by enumeration and by independent parsing."""

import itertools
from collections import Counter

import numpy as np
import pytest

from flm_jax.data.tasks.grammar import ENGLISH, GrammarTask
from flm_jax.data.tasks.registry import make_task

# Ambiguous ("x x x" has two trees) and of few words: all sentences of up to 7 words can be listed.
SMALL = {
    "S": [("S S", 0.3), ("X Y", 0.3), ("x", 0.4)],
    "X": [("x", 0.9), ("Y X", 0.1)],
    "Y": [("y", 0.5), ("x", 0.5)],
}


def _parse_probability(rules, symbol, words):
    """Sum over all trees, by recursion over split points: no table, no arrays."""
    total = 0.0
    for side, p in rules[symbol]:
        parts = side.split()
        if len(parts) == 1:
            total += p * (words == (side,))
            continue
        for cut in range(1, len(words)):
            left = _parse_probability(rules, parts[0], words[:cut])
            if left:
                total += p * left * _parse_probability(rules, parts[1], words[cut:])
    return total


@pytest.fixture(scope="module")
def grammar():
    """One object for several tests: it keeps the entropy of its law."""
    return make_task("grammar")


@pytest.fixture(scope="module")
def small():
    """A grammar with its whole conditioned law: token tuple -> probability."""
    task = GrammarTask("small", SMALL, length=7)
    law = {}
    for n in range(1, 8):
        for words in itertools.product("xy", repeat=n):
            p = _parse_probability(SMALL, "S", words)
            if p:
                law[(*map(int, task.tokenizer.encode(" ".join(words))), *[0] * (7 - n))] = p
    total = sum(law.values())
    return task, {row: p / total for row, p in law.items()}


def test_grammar_likelihood_equals_enumeration(small):
    task, law = small
    rows = np.array(list(itertools.product(range(3), repeat=7)))  # all there is, filler included
    likelihood = task.log_likelihood(rows)
    assert np.exp(likelihood).sum() == pytest.approx(1, abs=1e-9)
    expected = [np.log(law.get(tuple(map(int, row)), 0) or 1e-300) for row in rows]
    finite = np.isfinite(likelihood)
    assert finite.sum() == len(law) > 50
    np.testing.assert_allclose(likelihood[finite], np.array(expected)[finite], rtol=1e-10)
    assert (np.array(expected)[~finite] < -600).all()
    lengths = Counter()
    for row, p in law.items():
        lengths[sum(map(bool, row))] += p
    np.testing.assert_allclose(task.length_law, [lengths[n] for n in range(8)], atol=1e-12)


def test_grammar_samples_follow_the_enumerated_law(small):
    task, law = small
    tokens = task.sample(50_000, seed=0)
    seen = Counter(map(tuple, tokens.tolist()))
    distance = sum(abs(seen[row] / 50_000 - p) for row, p in law.items()) / 2
    assert seen.keys() <= law.keys()
    assert distance < 0.015
    exact = -sum(p * np.log(p) for p in law.values())
    mean, error = task.entropy
    assert abs(mean - exact) < 4 * error < 0.05
    report = task.report(tokens)
    assert report["law_perplexity"] == pytest.approx(np.exp(exact / 7), rel=0.01)
    assert report["perplexity"] == pytest.approx(np.exp(exact / 7), rel=0.01)


def test_grammar_of_the_library_by_independent_parsing():
    task = make_task("grammar")
    tokens = task.sample(40, seed=0)
    texts = [task.tokenizer.decode([t for t in row if t]).split() for row in tokens]
    short = [i for i, words in enumerate(texts) if len(words) <= 10]
    assert len(short) > 20
    parsed = np.array([_parse_probability(ENGLISH, "S", tuple(texts[i])) for i in short])
    gaps = np.log(parsed) - task.log_likelihood(tokens[short])
    # One constant, the probability of at most 16 words; Monte Carlo for its value elsewhere.
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-9)
    assert np.log(0.88) < gaps[0] < np.log(0.90)


@pytest.mark.parametrize(
    "text, valid",
    [
        ("the dog near many cats sleeps", True),
        ("the dog near many cats sleep", False),
        ("many cats that see the old dog sing", True),
        ("a dogs sleep", False),
        ("the dog", False),
        ("sleeps the dog", False),
        ("the dog . sleeps", False),
        (". the dog sleeps", False),
    ],
)
def test_grammar_demands_agreement_over_a_distance(grammar, text, valid):
    task = grammar
    ids = task.tokenizer.encode(text)
    row = np.pad(ids, (0, 16 - len(ids)))[None]
    assert task.report(row)["valid"] == float(valid)
    assert ("perplexity" in task.report(row)) == valid


def test_grammar_perplexity_tells_collapse_from_the_law(grammar):
    task = grammar
    tokens = task.sample(4000, seed=0)
    report = task.report(tokens)
    assert report["perplexity"] == pytest.approx(report["law_perplexity"], rel=0.03)
    likely = tokens[np.argsort(task.log_likelihood(tokens))[-1000:]]
    assert task.report(likely)["perplexity"] < 0.9 * report["law_perplexity"]
