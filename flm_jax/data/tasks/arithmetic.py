"""Sums with carry, a+b=c, with a fixed number of digits: exact validity and distributions."""

import functools
import itertools

import numpy as np

from flm_jax.core.errors import require
from flm_jax.data.tasks.base import Task, chance_total_variation, repeated, total_variation
from flm_jax.data.tokenizers.builtin import WordTokenizer

_PLUS, _EQUALS = 10, 11  # ids; a digit is its own id


class ArithmeticTask(Task):
    """Sequences "a+b=c": a and b uniform in [0, 10^n), c their sum with n + 1 digits.

    All numbers are padded with zeros. In the usual order the first digit of c depends on carries
    from all later digits; reversed (least significant digit first, in all three numbers), each
    digit depends only on the digits before it.

    A sequence has 3n + 3 tokens of a vocabulary of 12.
    """

    has_problems = True
    has_references = True

    def __init__(self, name: str = "arithmetic", digits: int = 3, reverse: bool = False):
        require(1 <= digits <= 8, f"task {name!r} got digits={digits}; expected 1 to 8")
        self.name = name
        self.digits = digits
        self.reverse = reverse
        self.length = 3 * digits + 3
        self.tokenizer = WordTokenizer([*"0123456789", "+", "="])

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        a, b = rng.integers(0, 10**self.digits, size=(2, count))
        return self.write(a, b)

    def write(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sequences of correct sums, int32 [N, length], for int [N] summands in [0, 10^digits)."""
        plus = np.full((len(a), 1), _PLUS, np.int32)
        n = self.digits
        parts = [self._digits(a, n), plus, self._digits(b, n), plus + 1, self._digits(a + b, n + 1)]
        return np.concatenate(parts, axis=1)

    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Validity, and distance to the true distribution.

        Returns:
          valid: fraction of rows in the right format whose c is a + b.
          format: fraction of rows with digits and signs in their places.
          carry_total_variation: total variation of the pattern of carries (2^n cells) among valid
            rows; invalid rows count in full.
          answer_total_variation: the same for floor(c / 10^(n-1)), 20 cells (c itself has too many
            values for a few thousand samples).
          *_chance: mean for the same number of true samples.
          repeated: fraction of rows equal to an earlier one; for true samples about N / 2 /
            10^(2n).
        """
        tokens = self._checked(tokens)
        shaped, a, b, c = self._read(tokens)
        valid = shaped & (a + b == c)
        figures = {"valid": float(valid.mean()), "format": float(shaped.mean())}
        laws = {"carry": self.carry_law, "answer": self.answer_law}
        cells = {"carry": self._carries(a, b), "answer": c // 10 ** (self.digits - 1)}
        for key, law in laws.items():
            share = np.bincount(cells[key][valid], minlength=len(law)) / len(tokens)
            figures[f"{key}_total_variation"] = total_variation(share, law)
            figures[f"{key}_total_variation_chance"] = chance_total_variation(law, len(tokens))
        return figures | {"repeated": repeated(tokens)}

    def problems(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Prompts "a+b=" with a and b uniform; the n + 1 digits of c are to be completed."""
        given = np.arange(self.length) < 2 * self.digits + 2
        return self.sample(count, seed) * given, np.tile(given, (count, 1))

    def report_problems(
        self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray
    ) -> dict[str, float]:
        """Figures; `solved` is the fraction of rows with the prompt unchanged and the true sum."""
        tokens = self._checked(tokens)
        kept = self.kept(tokens, problems, given)
        shaped, a, b, c = self._read(tokens)
        return {"solved": float((kept & shaped & (a + b == c)).mean()), "kept": float(kept.mean())}

    def references(self, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        n, problems = self.digits, np.asarray(problems)
        return self.write(*(self._number(problems[:, i : i + n]) for i in (0, n + 1)))

    def result(self, row: np.ndarray) -> str:
        """Digits after the last "=", without the zeros that only pad them."""
        digits = self.tokenizer.decode(row).replace(" ", "").rpartition("=")[2]
        return digits.rstrip("0") if self.reverse else digits.lstrip("0")

    @functools.cached_property
    def carry_law(self) -> np.ndarray:
        """Probability of each pattern of carries [2^n], bit i for the carry out of digit i.

        The digit carries with probability 45/100 without an incoming carry, and 55/100 with one.
        """
        law = np.zeros(2**self.digits)
        for bits in itertools.product((0, 1), repeat=self.digits):
            p = 1.0
            for before, bit in zip((0, *bits), bits):
                carry = (45 + 10 * before) / 100
                p *= carry if bit else 1 - carry
            law[sum(bit << i for i, bit in enumerate(bits))] = p
        return law

    @functools.cached_property
    def answer_law(self) -> np.ndarray:
        """Probability of floor(c / 10^(n-1)), [20]: a triangular distribution, summed in cells."""
        top, cell = 10**self.digits, 10 ** (self.digits - 1)

        def below(x: int) -> int:
            """Number of pairs (a, b) in [0, top)^2 with a + b < x."""
            # The triangle of all a, b >= 0, less two equal ones in which a or b is not below top.
            over = max(0, x - top)
            return x * (x + 1) // 2 - over * (over + 1) if x <= top * 2 - 1 else top * top

        edges = [below(k * cell) for k in range(21)]
        return np.diff(np.array(edges, float)) / top**2

    def _digits(self, numbers: np.ndarray, width: int) -> np.ndarray:
        powers = 10 ** np.arange(width)
        digits = (np.asarray(numbers)[:, None] // powers % 10).astype(np.int32)
        return digits if self.reverse else digits[:, ::-1]

    def _read(self, tokens: np.ndarray) -> tuple[np.ndarray, ...]:
        """Parses rows to (right format, a, b, c), each [N], undefined in a wrong format."""
        n = self.digits
        signs = {n: _PLUS, 2 * n + 1: _EQUALS}
        shaped = np.ones(len(tokens), bool)
        for i in range(self.length):
            column = tokens[:, i]
            right = column == signs[i] if i in signs else (column >= 0) & (column < 10)
            shaped &= right
        pieces = tokens[:, :n], tokens[:, n + 1 : 2 * n + 1], tokens[:, 2 * n + 2 :]
        return shaped, *(self._number(piece) for piece in pieces)

    def _number(self, digits: np.ndarray) -> np.ndarray:
        digits = digits if self.reverse else digits[:, ::-1]
        return digits.astype(np.int64) @ 10 ** np.arange(digits.shape[1])

    def _carries(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Pattern of carries as an integer in [0, 2^n), [N]."""
        pattern = np.zeros(len(a), np.int64)
        for i in range(self.digits):
            power = 10 ** (i + 1)
            pattern |= (a % power + b % power >= power).astype(np.int64) << i
        return pattern
