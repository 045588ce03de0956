"""Trigrams of a corpus: counts, discounts and files."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data import bigrams
from flm_jax.data.bigrams import count_bigrams
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.data.trigrams import TRIGRAMS, count_trigrams, load_trigrams, save_trigrams
from helpers.files import prepared_corpus
from helpers.ngrams import Stream, dense_bigrams

SIZE = 5


def _dense(found):
    """r(c | a, b) of all triples [V, V, V]."""
    out = np.zeros((SIZE, SIZE, SIZE))
    for a in range(SIZE):
        for pair in range(found.starts[a], found.starts[a + 1]):
            row = slice(found.places[pair], found.places[pair + 1])
            out[a, found.seconds[pair]] = found.backoff[pair]
            out[a, found.seconds[pair], found.nexts[row]] = found.ratios[row]
    return out


@pytest.mark.parametrize("least", [1, 3])
def test_ratios_are_those_of_absolute_discounting(least, monkeypatch):
    monkeypatch.setattr(bigrams, "_PIECE", 37)  # triples across pieces count once
    tokens = np.random.default_rng(0).choice(SIZE, 400, p=[0.5, 0.3, 0.15, 0.05, 0.0])
    counts = np.zeros((SIZE, SIZE, SIZE))
    for a, b, c in zip(tokens[:-2], tokens[1:-1], tokens[2:]):
        counts[a, b, c] += 1
    discount = np.sum(counts == 1) / (np.sum(counts == 1) + 2 * np.sum(counts == 2))
    assert 0 < discount < 1  # some triples are seen once, others twice
    share = np.bincount(tokens[1:], minlength=SIZE) / (tokens.size - 1)
    conditional = share * np.exp(dense_bigrams(count_bigrams(Stream(tokens), SIZE)))
    got = _dense(count_trigrams(Stream(tokens), SIZE, least))
    for a in range(SIZE):
        for b in range(SIZE):
            kept = counts[a, b] >= least
            mass = np.where(kept, counts[a, b] - discount, 0) / max(counts[a, b].sum(), 1)
            left = 1 - mass.sum()
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.log(np.where(kept, mass / conditional[b], 0) + left)
            np.testing.assert_allclose(got[a, b][share > 0], ratio[share > 0], rtol=1e-4, atol=1e-5)
            # q(c | a, b) = q(c | b) exp(r) adds up to 1.
            assert np.sum(conditional[b] * np.exp(got[a, b])) == pytest.approx(1, abs=1e-4)
    assert np.any(got)


def test_prepared_data_and_a_file_give_the_same_trigrams(tmp_path):
    mark = ByteTokenizer().fingerprint
    counted = load_trigrams(prepared_corpus(tmp_path, "bytes"), mark)
    assert counted.nexts.size and np.all(np.diff(counted.places) >= 1)
    save_trigrams(tmp_path, counted, mark)
    for name, a, b in zip(counted._fields, counted, load_trigrams(tmp_path, mark)):
        np.testing.assert_allclose(a, b, atol=4e-3, err_msg=name)  # logs in float16
        assert a.dtype == b.dtype
    with pytest.raises(UserError, match="another tokenizer"):
        load_trigrams(tmp_path, "0" * 64)
    with pytest.raises(UserError, match=f"has no {TRIGRAMS}"):
        load_trigrams(tmp_path / "nothing", mark)
    save_trigrams(tmp_path, counted._replace(backoff=counted.backoff[:-1]), mark)
    with pytest.raises(UserError, match="no table of trigrams"):
        load_trigrams(tmp_path, mark)
    (tmp_path / TRIGRAMS).write_bytes(b"damaged")
    with pytest.raises(UserError, match=TRIGRAMS):
        load_trigrams(tmp_path, mark)


def test_a_corpus_of_two_tokens_has_none():
    found = count_trigrams(Stream([1, 2]), SIZE)
    assert found.nexts.size == found.seconds.size == 0 and list(found.places) == [0]
