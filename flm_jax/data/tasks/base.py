"""The interface of synthetic tasks: examples, and optionally problems to complete."""

import abc

import numpy as np

from flm_jax.core.errors import UserError, require
from flm_jax.data.tokenizers.base import Tokenizer

Example = dict[str, np.ndarray]


class Task(abc.ABC):
    """Sequences of one length with a known distribution or a checker.

    Attributes:
      name: key in `TASKS`.
      length: number of tokens in a sequence.
      tokenizer: tokenizer of its vocabulary.
      has_problems: whether `problems` and `report_problems` are implemented.
      has_references: whether `references` and `result` are implemented.
      has_tests: whether answers are programs, and `passed` is implemented.
    """

    name: str
    length: int
    tokenizer: Tokenizer
    has_problems: bool = False
    has_references: bool = False
    has_tests: bool = False

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws `count` independent sequences, int32 [count, length]."""

    @abc.abstractmethod
    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Figures of generated sequences, int [N, length]; `valid` is the faultless fraction."""

    def problems(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns sequences to complete, which are a function of count and seed.

        Returns:
          (tokens int32 [count, length], given bool [count, length]). Tokens that are not prescribed
          are 0, so that no answer can leak into a sampler.

        Raises:
          UserError: if `has_problems` is False.
        """
        raise self._no_problems()

    def report_problems(
        self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray
    ) -> dict[str, float]:
        """Figures of completions.

        Args:
          tokens: completions, int [N, length].
          problems, given: results of `problems`.

        Returns:
          `kept` is the fraction of rows with unchanged prescribed tokens, `solved` the fraction
          that are kept and completely correct; others as the task documents.

        Raises:
          UserError: if `has_problems` is False.
        """
        raise self._no_problems()

    def references(self, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Returns one correct completion of each problem, int32 [N, length].

        Args:
          problems, given: results of `problems`.

        Raises:
          UserError: if `has_references` is False.
        """
        raise UserError(f"task {self.name!r} has no reference answers.")

    def result(self, row: np.ndarray) -> str:
        """Returns the answer in a sequence int [length], without parts that only lengthen it.

        Raises:
          UserError: if `has_references` is False.
        """
        raise UserError(f"task {self.name!r} has no reference answers.")

    def passed(self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Rows with unchanged prescribed tokens whose program passes all its unit tests, bool [N].

        Args:
          tokens, problems, given: the same as for `report_problems`.

        Raises:
          UserError: if `has_tests` is False.
        """
        raise UserError(f"task {self.name!r} has no unit tests.")

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Draws `count` sequences, int32 [count, length], as a function of the seed."""
        return self.draw(np.random.default_rng(seed), count)

    def source(self, size: int, seed: int, prompts: bool = False) -> "TaskSource":
        """Returns a random-access source of `size` examples.

        Args:
          prompts: whether they are problems with their reference answers, in which "prompt" is the
            mask of prescribed tokens.

        Raises:
          UserError: prompts are requested of a task without references.
        """
        return TaskSource(self, size, seed, prompts)

    def _no_problems(self) -> UserError:
        return UserError(
            f"task {self.name!r} has no problems to complete; expected one whose has_problems is "
            "True, such as arithmetic, sudoku, grammar."
        )

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens as an array, if their shape is [N, length] with N > 0."""
        tokens = np.asarray(tokens)
        require(
            tokens.ndim == 2 and tokens.shape[0] > 0 and tokens.shape[1] == self.length,
            f"task {self.name!r} got tokens of shape {tokens.shape}; expected [N, {self.length}]",
        )
        return tokens

    def kept(self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Rows whose prescribed tokens are unchanged, bool [N]."""
        problems, given = np.asarray(problems), np.asarray(given)
        require(
            problems.shape == given.shape == tokens.shape,
            f"task {self.name!r} got problems {problems.shape} and given {given.shape} for tokens "
            f"{tokens.shape}; expected one shape",
        )
        return ((tokens == problems) | ~given.astype(bool)).all(axis=1)


class TaskSource:
    """Examples of a task, all drawn at once; they depend on (size, seed) alone."""

    def __init__(self, task: Task, size: int, seed: int, prompts: bool = False):
        require(size > 0, f"task {task.name!r} got size {size}; expected at least 1")
        self._mask = np.ones(task.length, bool)
        self.fingerprint = f"{task.name}:size={size}:seed={seed}"
        self._prompt = None
        if prompts:
            problems, self._prompt = task.problems(size, seed)
            self._tokens = task.references(problems, self._prompt)
            self.fingerprint += ":prompts"
        else:
            self._tokens = task.sample(size, seed)

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Example:
        example = {"tokens": self._tokens[index], "mask": self._mask}
        return example if self._prompt is None else example | {"prompt": self._prompt[index]}


def repeated(tokens: np.ndarray) -> float:
    """Fraction of rows equal to an earlier row: 0 if all differ, (N - 1) / N for one mode."""
    return 1.0 - len(np.unique(tokens, axis=0)) / len(tokens)


def total_variation(share: np.ndarray, law: np.ndarray) -> float:
    """Half the l1 distance between observed fractions and a distribution on the same cells.

    Args:
      share: observed fractions [K]; if they sum to less than 1, the rest lies outside the
        distribution and counts in full.
      law: probabilities [K].
    """
    return float((np.abs(share - law).sum() + 1.0 - share.sum()) / 2)


def chance_total_variation(law: np.ndarray, count: int) -> float:
    """Expected `total_variation` of `count` true samples, by the normal approximation.

    It is half of the sum of E|share_k - law_k| = sqrt(2 / pi) sqrt(law_k (1 - law_k) / count), with
    which a report should be compared instead of 0.
    """
    return float(np.sqrt(law * (1 - law) * 2 / (np.pi * count)).sum() / 2)
