"""Python functions from a specification in words, checked by tests; each has many right answers."""

from collections.abc import Sequence

import numpy as np

from flm_jax.core.errors import require
from flm_jax.data.tasks.base import Task, chance_total_variation, repeated, total_variation
from flm_jax.data.tasks.tiny_python import passes
from flm_jax.data.tokenizers.builtin import WordTokenizer

_STEPS = 4  # operations of a specification
_OPERATIONS, _NUMBERS = ("add", "sub", "times"), "123456789"
_SIGNS = {"add": "+", "sub": "-", "times": "*"}
_PYTHON = ("x", "return", "+", "-", "*", "+=", "-=", "*=", ";", "(", ")")
_END = "#"  # fills what is left; to Python a comment
_ARGUMENTS = (-5, 0, 1, 2, 9)  # of the unit tests

Specification = Sequence[tuple[str, int]]


class FunctionTask(Task):
    """Sequences of a specification and the body of a function that meets it, as words.

        add 3 times 2 sub 1 add 4    x += 3 ; return 2 * x - 1 + 4 # # # # #

    A specification is four consecutive operations on x, each uniform over add, sub, times with a
    number uniform over 1 to 9: there are 27^4 = 531,441. The body is 16 words, filled up with "#";
    after `def f(x):` it is Python. It is right if it passes five unit tests, that is, if f has the
    specification's value at x = -5, 0, 1, 2, 9.

    There are many right answers: the first k operations, k uniform over 0 to 3, are separate
    statements, the others one expression, in which the two sides of each + and * are swapped with
    probability 1/2. A choice at one position thus constrains most others, and words that are each
    likely by themselves do not form a program together.

    A sequence has 24 tokens of a vocabulary of 24.
    """

    name = "functions"
    prompt_length = 2 * _STEPS
    answer_length = 16
    length = prompt_length + answer_length
    has_problems = True
    has_references = True
    has_tests = True

    def __init__(self):
        self._words = [*_OPERATIONS, *_NUMBERS, *_PYTHON, _END]
        self._ids = {word: i for i, word in enumerate(self._words)}
        self.tokenizer = WordTokenizer(self._words)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        specifications = self._specifications(rng, count)
        statements = rng.integers(0, _STEPS, count)
        swaps = rng.random((count, _STEPS)) < 0.5
        rows = [
            self._row(specification, body(specification, int(k), swap))
            for specification, k, swap in zip(specifications, statements, swaps)
        ]
        return np.array(rows, np.int32).reshape(count, self.length)

    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Validity, and distance to the true distribution.

        Returns:
          valid: fraction of rows with a specification and a body that passes its tests.
          format: fraction of rows whose first 8 words are a specification.
          statements_total_variation: total variation of the number of statements before `return`
            (uniform over 0 to 3) among valid rows; rows that are invalid, or have more, count in
            full.
          statements_total_variation_chance: mean for the same number of true samples.
          repeated: fraction of rows equal to an earlier one.
        """
        tokens = self._checked(tokens)
        read = [self.specification(row) for row in tokens]
        right = np.array([self._passes(spec, row) for spec, row in zip(read, tokens)])
        bodies = [self.body(row).split() for row in tokens[right]]
        cells = [words[: words.index("return")].count(";") for words in bodies]
        law = np.full(_STEPS, 1 / _STEPS)
        share = np.bincount(np.array(cells, int), minlength=_STEPS)[:_STEPS] / len(tokens)
        return {
            "valid": float(right.mean()),
            "format": float(np.mean([spec is not None for spec in read])),
            "statements_total_variation": total_variation(share, law),
            "statements_total_variation_chance": chance_total_variation(law, len(tokens)),
            "repeated": repeated(tokens),
        }

    def problems(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Specifications; the 16 words of the body are to be completed."""
        given = np.arange(self.length) < self.prompt_length
        return self.sample(count, seed) * given, np.tile(given, (count, 1))

    def report_problems(
        self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray
    ) -> dict[str, float]:
        """Figures; `solved` is the fraction of rows that pass, with the specification unchanged."""
        tokens = self._checked(tokens)
        kept = self.kept(tokens, problems, given)
        return {
            "solved": float(self.passed(tokens, problems, given).mean()),
            "kept": float(kept.mean()),
        }

    def references(self, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Bodies that are one expression, with x before each number; no others are shorter."""
        rows = []
        for problem in np.asarray(problems):
            spec = self.specification(problem)
            require(spec is not None, f"got {self._decoded(problem)}; expected a specification.")
            rows.append(self._row(spec, body(spec, 0, [False] * _STEPS)))
        return np.array(rows, np.int32).reshape(-1, self.length)

    def result(self, row: np.ndarray) -> str:
        """Body up to its first "#", without spaces."""
        return self.body(row).partition(_END)[0].replace(" ", "")

    def passed(self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        tokens = self._checked(tokens)
        kept = self.kept(tokens, problems, given)
        specs = [self.specification(row) for row in np.asarray(problems)]
        return kept & np.array([self._passes(spec, row) for spec, row in zip(specs, tokens)])

    def specification(self, row: np.ndarray) -> Specification | None:
        """Operations of a sequence int [24]; None if its first words are not a specification."""
        words = self._decoded(row[: self.prompt_length])
        pairs = list(zip(words[::2], words[1::2]))
        if not all(name in _OPERATIONS and number in _NUMBERS for name, number in pairs):
            return None
        return [(name, int(number)) for name, number in pairs]

    def body(self, row: np.ndarray) -> str:
        """The 16 words after the specification, unchanged; ids out of range become "?"."""
        return " ".join(self._decoded(row[self.prompt_length :]))

    def tests(self, specification: Specification) -> list[tuple[int, int]]:
        """Unit tests: pairs of x and f(x)."""
        return [(x, _result(specification, x)) for x in _ARGUMENTS]

    def _passes(self, specification: Specification | None, row: np.ndarray) -> bool:
        return specification is not None and passes(self.body(row), self.tests(specification))

    def _decoded(self, ids: np.ndarray) -> list[str]:
        size = len(self._words)
        return [self._words[i] if 0 <= i < size else "?" for i in map(int, ids)]

    def _specifications(self, rng: np.random.Generator, count: int) -> list[Specification]:
        names = rng.integers(0, len(_OPERATIONS), (count, _STEPS))
        numbers = rng.integers(1, 10, (count, _STEPS))
        return [[(_OPERATIONS[i], int(n)) for i, n in zip(*pair)] for pair in zip(names, numbers)]

    def _row(self, specification: Specification, words: list[str]) -> list[int]:
        asked = [word for name, number in specification for word in (name, str(number))]
        filled = words + [_END] * (self.answer_length - len(words))
        return [self._ids[word] for word in asked + filled]


def _result(specification: Specification, x: int) -> int:
    for name, number in specification:
        x = {"add": x + number, "sub": x - number, "times": x * number}[name]
    return x


def body(specification: Specification, statements: int, swap: Sequence[bool]) -> list[str]:
    """Returns the words of a function's body.

    Args:
      specification: operations in order.
      statements: number of first operations that become statements such as `x += 3 ;`.
      swap: for each operation, whether its sides are swapped in the expression.
    """
    words: list[str] = []
    for name, number in specification[:statements]:
        words += ["x", f"{_SIGNS[name]}=", str(number), ";"]
    expression, is_sum = ["x"], False
    for (name, number), swapped in list(zip(specification, swap))[statements:]:
        if name == "times" and is_sum:
            expression = ["(", *expression, ")"]
        sides = [expression, [str(number)]]
        left, right = sides[::-1] if swapped and name != "sub" else sides
        expression, is_sum = [*left, _SIGNS[name], *right], name != "times"
    return [*words, "return", *expression]
