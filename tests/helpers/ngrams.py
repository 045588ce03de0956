"""Corpora and tables of n-grams for tests."""

import numpy as np


class Stream:
    """Tokens of a corpus, read as those of a prepared folder are."""

    def __init__(self, tokens):
        self._tokens = np.asarray(tokens, np.uint16)

    def __len__(self):
        return self._tokens.size

    def read(self, start, stop):
        return self._tokens[start:stop]


def dense_bigrams(found):
    """r(b | a) of all pairs [V, V]."""
    size = found.backoff.size
    out = np.tile(found.backoff[:, None], (1, size))
    for a in range(size):
        row = slice(found.starts[a], found.starts[a + 1])
        out[a, found.nexts[row]] = found.ratios[row]
    return out
