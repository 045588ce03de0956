"""Words of texts: the fraction that a list contains, and copied runs of words.

A word is a run of letters, with apostrophes inside, in lower case. The first and the last word of a
text are excluded, since they may be cut off if examples are cut from a stream.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from flm_jax.metrics.distribution import ngram_hashes

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """Returns the words of a text in order, in lower case."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def word_list(texts: Iterable[str], least: int = 1) -> list[str]:
    """Sorted list of the words that occur at least `least` times in some texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(words_of(text))
    return sorted(word for word, count in counts.items() if count >= least)


def known_words(texts: Sequence[str], known: frozenset[str]) -> np.ndarray:
    """Number of known words of each text, and number of its words, float64 [N, 2].

    The fraction for several texts is that of the sums. The words at both ends do not count.
    """
    rows = [words_of(text)[1:-1] for text in texts]
    return np.array([[sum(word in known for word in row), len(row)] for row in rows], float)


class Runs:
    """All runs of `length` words of a corpus, to be looked up.

    Args:
      texts: texts of the corpus; no run extends over two texts.
      length: number of words of a run.
    """

    def __init__(self, texts: Iterable[str], length: int = 12):
        self._length = length
        self._numbers: dict[str, int] = {}
        found = [self._hashes(words_of(text), True) for text in texts]
        self._runs = np.unique(np.concatenate(found)) if found else np.zeros(0, np.uint64)

    def _hashes(self, words: Sequence[str], new: bool) -> np.ndarray:
        """Hash of each run; all words that the corpus lacks have the same number."""
        numbers, size = self._numbers, len(self._numbers)
        if new:
            ids = [numbers.setdefault(word, len(numbers)) for word in words]
        else:
            ids = [numbers.get(word, size) for word in words]
        return ngram_hashes(np.array([ids], np.int64).reshape(1, -1), self._length)[0]

    def copied(self, texts: Sequence[str]) -> np.ndarray:
        """Whether each text contains a run of the corpus, bool [N]."""
        return np.array([self._has(self._hashes(words_of(text), False)).any() for text in texts])

    def _has(self, runs: np.ndarray) -> np.ndarray:
        """Whether runs occur in the corpus, by bisection: np.isin sorts all its runs each time."""
        if not len(self._runs):
            return np.zeros(len(runs), bool)
        places = np.searchsorted(self._runs, runs).clip(max=len(self._runs) - 1)
        return self._runs[places] == runs
