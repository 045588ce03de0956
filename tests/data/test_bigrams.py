"""Bigrams of a corpus: counts, discounts and files."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data import bigrams
from flm_jax.data.bigrams import BIGRAMS, count_bigrams, load_bigrams, save_bigrams
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from helpers.files import prepared_corpus


class _Stream:
    """Tokens of a corpus, read as those of a prepared folder are."""

    def __init__(self, tokens):
        self._tokens = np.asarray(tokens, np.uint16)

    def __len__(self):
        return self._tokens.size

    def read(self, start, stop):
        return self._tokens[start:stop]


def _dense(found):
    """r(b | a) of all pairs [V, V]."""
    size = found.backoff.size
    out = np.tile(found.backoff[:, None], (1, size))
    for a in range(size):
        row = slice(found.starts[a], found.starts[a + 1])
        out[a, found.nexts[row]] = found.ratios[row]
    return out


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
        got = _dense(count_bigrams(_Stream(tokens), size, least))[a]
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
