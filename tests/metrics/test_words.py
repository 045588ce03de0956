"""Words of texts: what counts as one, which are known, which runs were copied."""

import numpy as np

from flm_jax.metrics.words import Runs, known_words, word_list, words_of


def test_words_are_letters_with_apostrophes_inside():
    assert words_of("“Don’t,” said 'she' 3 times; über_alles—no!") == [
        *("don't", "said", "she", "times", "über", "alles", "no")
    ]
    assert words_of("12 ... !") == []


def test_a_list_has_words_that_are_frequent_enough():
    texts = ["the cat and the hat", "The dog"]
    assert word_list(texts) == ["and", "cat", "dog", "hat", "the"]
    assert word_list(texts, least=3) == ["the"]


def test_words_at_both_ends_do_not_count():
    known = frozenset({"the", "cat"})
    counts = known_words(["xx the cat qq the yy", "one", ""], known)
    np.testing.assert_array_equal(counts, [[3, 4], [0, 0], [0, 0]])


def test_runs_are_found_within_one_text_alone():
    runs = Runs(["a b c d e", "f g h", "i j"], 3)
    texts = ["x b C d y", "d e f g", "a b x c d e", "j i", "", "x x x x", "f, g. H"]
    assert runs.copied(texts).tolist() == [True, False, True, False, False, False, True]
    assert not Runs([], 3).copied(texts).any()


def test_runs_agree_with_brute_force():
    rng = np.random.default_rng(0)
    write = lambda count: " ".join(rng.choice(list("abc"), count))
    corpus, texts = [write(60) for _ in range(3)], [write(12) for _ in range(60)]
    spaced = [f" {text} " for text in corpus]
    expected = [
        any(f" {' '.join(t.split()[i : i + 6])} " in c for i in range(7) for c in spaced)
        for t in texts
    ]
    assert 0 < sum(expected) < 60
    assert Runs(corpus, 6).copied(texts).tolist() == expected
