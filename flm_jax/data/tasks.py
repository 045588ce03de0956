"""Synthetic tasks that are generated, not shipped, and whose samples can be checked exactly."""

import abc
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flm_jax.data.tokenizer_base import Tokenizer
from flm_jax.data.tokenizers import WordTokenizer
from flm_jax.types import require, unknown_name

Example = dict[str, np.ndarray]


class Task(abc.ABC):
    """Sequences of one length with a known law or a checker.

    Attributes:
      name: as in `TASKS`.
      length: tokens in a sequence.
      tokenizer: its vocabulary.
    """

    name: str
    length: int
    tokenizer: Tokenizer

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` independent sequences, int32 [count, length]."""

    @abc.abstractmethod
    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Figures for generated sequences, int [N, length]; `valid` is the share without fault."""

    def sample(self, count: int, seed: int) -> np.ndarray:
        """`count` sequences, int32 [count, length]; the same seed gives the same ones."""
        return self.draw(np.random.default_rng(seed), count)

    def source(self, size: int, seed: int) -> "TaskSource":
        """A random-access source of `size` examples."""
        return TaskSource(self, size, seed)


class TaskSource:
    """Examples of a task, all drawn at once; a function of (size, seed) alone."""

    def __init__(self, task: Task, size: int, seed: int):
        require(size > 0, f"task {task.name!r} got size {size}; expected at least 1")
        self._tokens = task.sample(size, seed)
        self._mask = np.ones(task.length, bool)
        self.fingerprint = f"{task.name}:size={size}:seed={seed}"

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Example:
        return {"tokens": self._tokens[index], "mask": self._mask}


class LawTask(Task):
    """A task small enough to list: every sequence with its probability.

    Attributes:
      law: token tuple -> probability; the probabilities add up to 1.
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
        """Share of sequences that the law allows, and total variation from it.

        The total variation of N true samples is not 0 but of order sqrt(len(law) / N).
        """
        tokens = np.asarray(tokens)
        require(
            tokens.ndim == 2 and tokens.shape[0] > 0 and tokens.shape[1] == self.length,
            f"task {self.name!r} got tokens of shape {tokens.shape}; expected [N, {self.length}]",
        )
        rows, counts = np.unique(tokens, axis=0, return_counts=True)
        seen = {tuple(map(int, row)): int(n) for row, n in zip(rows, counts)}
        valid = sum(n for row, n in seen.items() if row in self.law) / len(tokens)
        gaps = [abs(seen.get(row, 0) / len(tokens) - p) for row, p in self.law.items()]
        return {"valid": valid, "total_variation": (sum(gaps) + 1 - valid) / 2}


def _phrases(name: str, law: Mapping[str, float]) -> LawTask:
    words: Sequence[str] = list(dict.fromkeys(" ".join(law).split()))
    tokenizer = WordTokenizer(words)
    tokens = {tuple(map(int, tokenizer.encode(phrase))): p for phrase, p in law.items()}
    return LawTask(name, tokenizer, tokens)


_PHRASES_2 = {"new york": 0.5, "san diego": 0.5}
_PHRASES_4 = {"new york": 0.4, "san diego": 0.3, "los angeles": 0.2, "las vegas": 0.1}
# First words are shared: a read-out position by position that is undecided between new york (.30),
# new orleans (.22) and san diego (.48) takes "new" (.52) and then "diego" (.48).
_PHRASES_SHARED = {"new york": 0.4, "new orleans": 0.1, "san diego": 0.3, "san jose": 0.2}

TASKS: dict[str, Callable[[], Task]] = {
    "phrases2": functools.partial(_phrases, "phrases2", _PHRASES_2),
    "phrases4": functools.partial(_phrases, "phrases4", _PHRASES_4),
    "phrases_shared": functools.partial(_phrases, "phrases_shared", _PHRASES_SHARED),
}


def make_task(name: str) -> Task:
    """A task by name."""
    if name not in TASKS:
        raise unknown_name("task", name, TASKS)
    return TASKS[name]()
