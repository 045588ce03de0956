"""Phrases with a known distribution: a table of sequences and their probabilities."""

from collections.abc import Mapping, Sequence

import numpy as np

from flm_jax.data.tasks.base import Task
from flm_jax.data.tokenizers.base import Tokenizer
from flm_jax.data.tokenizers.builtin import WordTokenizer


class LawTask(Task):
    """A task with a listed distribution: every sequence with its probability.

    Attributes:
      law: dict from a tuple of tokens to its probability; probabilities sum to 1.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, law: Mapping[tuple[int, ...], float]):
        self.name = name
        self.tokenizer = tokenizer
        self.law = dict(law)
        self._sequences = np.array(list(self.law), np.int32)
        self._probabilities = np.array(list(self.law.values()))
        self.length = self._sequences.shape[1]

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return self._sequences[rng.choice(len(self.law), size=count, p=self._probabilities)]

    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Fraction of sequences in the distribution's support, and total variation from it.

        The total variation of N true samples is not 0 but of order sqrt(len(law) / N).
        """
        tokens = self._checked(tokens)
        rows, counts = np.unique(tokens, axis=0, return_counts=True)
        seen = {tuple(map(int, row)): int(n) for row, n in zip(rows, counts)}
        valid = sum(n for row, n in seen.items() if row in self.law) / len(tokens)
        gaps = [abs(seen.get(row, 0) / len(tokens) - p) for row, p in self.law.items()]
        return {"valid": valid, "total_variation": (sum(gaps) + 1 - valid) / 2}


def phrases_task(name: str, law: Mapping[str, float]) -> LawTask:
    words: Sequence[str] = list(dict.fromkeys(" ".join(law).split()))
    tokenizer = WordTokenizer(words)
    tokens = {tuple(map(int, tokenizer.encode(phrase))): p for phrase, p in law.items()}
    return LawTask(name, tokenizer, tokens)


PHRASES_2 = {"new york": 0.5, "san diego": 0.5}
PHRASES_4 = {"new york": 0.4, "san diego": 0.3, "los angeles": 0.2, "las vegas": 0.1}
# First words are shared: a read-out position by position that is undecided between new york (.30),
# new orleans (.22) and san diego (.48) takes "new" (.52) and then "diego" (.48).
PHRASES_SHARED = {"new york": 0.4, "new orleans": 0.1, "san diego": 0.3, "san jose": 0.2}
