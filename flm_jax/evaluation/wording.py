"""Figures of samples as texts: known words, and runs of words copied from the training texts."""

from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from flm_jax.core.errors import require
from flm_jax.core.paths import expanded
from flm_jax.data.corpus.files import lines
from flm_jax.data.corpus.store import load_prepared
from flm_jax.evaluation.tables import Row
from flm_jax.metrics.intervals import interval, share_interval
from flm_jax.metrics.words import Runs, known_words


def read_words(path: str) -> frozenset[str]:
    """Reads a list of words, one a line.

    Raises:
      UserError: no such file, one that is not text, or an empty one.
    """
    file = epath.Path(expanded(path))
    require(file.is_file(), f"no file {path}; expected a list of words, one a line.")
    words = frozenset(word for line in lines(file) for word in line.split())
    require(bool(words), f"{path} is empty; expected a list of words, one a line.")
    return words


def documents(path: str, split: str = "train") -> Iterator[str]:
    """Yields the texts of a prepared folder."""
    prepared = load_prepared(path)
    stream = prepared.split(split)
    for number in range(stream.documents):
        yield prepared.tokenizer.decode(stream.document(number))


class Wording:
    """Figures of texts: known words and copied runs.

    Args:
      words: file of the known words, one a line, or the words themselves; "" for no fraction of
        known words.
      copied: number of words of a run that counts as copied; 0 for none.
      data: prepared folder whose training texts may be copied.
    """

    def __init__(self, words: str | Sequence[str] = "", copied: int = 0, data: str = ""):
        require(
            copied == 0 or bool(data),
            "the share of copied texts needs the training texts; give --data=PREPARED.",
        )
        known = read_words(words) if isinstance(words, str) and words else frozenset(words)
        self._words = known or None
        self._runs = Runs(documents(data), copied) if copied else None

    def figures(self, texts: Sequence[str]) -> Row:
        """Fractions known_words of all words and copied of texts, with their intervals."""
        row = {}
        if self._words is not None:
            counts = known_words(texts, self._words)
            share = lambda rows: float(rows[:, 0].sum() / max(rows[:, 1].sum(), 1.0))
            found = interval(share, counts)
            row |= dict(zip(("known_words", "known_words_low", "known_words_high"), found))
        if self._runs is not None:
            row["copied"] = float(np.mean(self._runs.copied(texts)))
            row["copied_low"], row["copied_high"] = share_interval(row["copied"], len(texts))
        return row
