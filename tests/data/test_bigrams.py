"""Bigrams of a corpus: counts, discounts and files."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data import bigrams
from flm_jax.data.bigrams import BIGRAMS, count_bigrams, load_bigrams, save_bigrams
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from helpers.files import prepared_corpus
from helpers.ngrams import Stream, dense_bigrams


@pytest.mark.parametrize("least", [1, 2])
def test_ratios_are_those_of_absolute_discounting(least, monkeypatch):
    monkeypatch.setattr(bigrams, "_PIECE", 37)  # pairs across pieces count once
    rng = np.random.default_rng(0)
    size, tokens = 6, rng.choice(6, 300, p=[0.5, 0.3, 0.15, 0.04, 0.01, 0.0])
    counts = np.zeros((size, size))
    for a, b in zip(tokens[:-1], tokens[1:]):
        counts[a, b] += 1
    share = counts.sum(0) / counts.sum()
    discount = np.sum(counts == 1) / (np.sum(counts == 1) + 2 * np.sum(counts == 2))
    assert 0 < discount < 1  # some pairs are seen once, others twice
    for a in range(size):
        kept = counts[a] >= least
        mass = np.where(kept, counts[a] - discount, 0) / max(counts[a].sum(), 1)
        left = 1 - mass.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.log(np.where(kept, mass / share, 0) + left)
        got = dense_bigrams(count_bigrams(Stream(tokens), size, least))[a]
        np.testing.assert_allclose(got[share > 0], ratio[share > 0], rtol=1e-5, atol=1e-6)
        # q(b | a) = p(b) exp(r) adds up to 1.
        assert np.sum(share * np.exp(got)) == pytest.approx(1, abs=1e-5)


def test_prepared_data_and_a_file_give_the_same_bigrams(tmp_path):
    mark = ByteTokenizer().fingerprint
    counted = load_bigrams(prepared_corpus(tmp_path, "bytes"), mark)
    assert counted.nexts.size
    save_bigrams(tmp_path, counted, mark)
    for name, a, b in zip(counted._fields, counted, load_bigrams(tmp_path, mark)):
        np.testing.assert_allclose(a, b, atol=4e-3, err_msg=name)  # ratios in float16
        assert a.dtype == b.dtype
    with pytest.raises(UserError, match="another tokenizer"):
        load_bigrams(tmp_path, "0" * 64)
    with pytest.raises(UserError, match="expected the folder of one"):
        load_bigrams(tmp_path / "nothing", mark)
    save_bigrams(tmp_path, counted._replace(starts=counted.starts[::-1].copy()), mark)
    with pytest.raises(UserError, match="no table of bigrams"):
        load_bigrams(tmp_path, mark)
    (tmp_path / BIGRAMS).write_bytes(b"damaged")
    with pytest.raises(UserError, match=BIGRAMS):
        load_bigrams(tmp_path, mark)
