"""Sums of two to four numbers with a written-out solution: answers of varying length."""

import numpy as np

from flm_jax.data.tasks.base import Task, chance_total_variation, repeated, total_variation
from flm_jax.data.tokenizers.builtin import WordTokenizer

_WORDS = [*"0123456789", "+", "=", "?", ";", "#", "."]
_IDS = {word: i for i, word in enumerate(_WORDS)}
_ASKED, _END = _IDS["?"], _IDS["."]
_TERMS = (2, 3, 4)


class WrittenSumsTask(Task):
    """Sequences "37+8+5?37+8=45;45+5=50;#50....", a question, its solution and padding.

    The question holds two to four numbers, each count equally likely: the first is uniform in 10 to
    99, the others in 1 to 9, so that there are 73,710 questions. The solution adds one number at a
    time and ends in "#" and the result. "." is the end of text; it ends the answer and pads the
    row, so that a model must learn how long answers are.
    There is one right solution of each question.

    A sequence has 44 tokens of a vocabulary of 16.
    """

    name = "written_sums"
    length = 44
    has_problems = True
    has_references = True

    def __init__(self):
        self.tokenizer = WordTokenizer(_WORDS, end=".")

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        terms = rng.choice(_TERMS, count)
        numbers = rng.integers(1, 10, (count, max(_TERMS)))
        numbers[:, 0] = rng.integers(10, 100, count)
        return np.stack([self._row(row[:n]) for row, n in zip(numbers, terms)])

    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Validity, and distance to the true distribution.

        Returns:
          valid: fraction of rows that are a question with its right solution.
          terms_total_variation: total variation of the count of numbers (uniform over 2, 3, 4)
            among valid rows; invalid rows count in full.
          terms_total_variation_chance: mean for the same number of true samples.
          repeated: fraction of rows equal to an earlier one.
        """
        tokens = self._checked(tokens)
        questions = [self._numbers(row) for row in tokens]
        valid = np.array(
            [bool(q) and np.array_equal(self._row(q), row) for q, row in zip(questions, tokens)]
        )
        found = np.array([len(q) for q, right in zip(questions, valid) if right], int)
        law = np.full(len(_TERMS), 1 / len(_TERMS))
        share = np.array([np.sum(found == n) for n in _TERMS]) / len(tokens)
        return {
            "valid": float(valid.mean()),
            "terms_total_variation": total_variation(share, law),
            "terms_total_variation_chance": chance_total_variation(law, len(tokens)),
            "repeated": repeated(tokens),
        }

    def problems(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Questions up to "?"; the solution and the padding after it are to be completed."""
        tokens = self.sample(count, seed)
        ends = np.argmax(tokens == _ASKED, axis=1)
        given = np.arange(self.length) <= ends[:, None]
        return tokens * given, given

    def report_problems(
        self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray
    ) -> dict[str, float]:
        """Figures of answers.

        Returns:
          solved: fraction of rows that keep the question and whose result, after the "#", is right.
          written: fraction whose complete solution is right, padding included.
          length: fraction whose first end of text is at the place of the right solution's.
          kept: fraction of rows that keep the question.
        """
        tokens = self._checked(tokens)
        kept, right = self.kept(tokens, problems, given), self.references(problems, given)
        solved = [self.result(a) == self.result(b) for a, b in zip(tokens, right)]
        return {
            "solved": float(np.mean(kept & np.array(solved))),
            "written": float(np.mean(np.all(tokens == right, axis=1))),
            "length": float(np.mean(_answer_end(tokens, given) == _answer_end(right, given))),
            "kept": float(kept.mean()),
        }

    def references(self, problems: np.ndarray, given: np.ndarray) -> np.ndarray:
        return np.stack([self._row(self._numbers(row)) for row in np.asarray(problems)])

    def result(self, row: np.ndarray) -> str:
        """Digits between the last "#" and the end of text; empty without them."""
        text = self._text(row).partition(".")[0]
        number = text.rpartition("#")[2] if "#" in text else ""
        return number if number.isdigit() else ""

    def _text(self, row: np.ndarray) -> str:
        return "".join(_WORDS[int(i)] for i in row)

    def _numbers(self, row: np.ndarray) -> list[int]:
        """Numbers of a row's question; empty if the question has a wrong form."""
        parts = self._text(row).partition("?")[0].split("+")
        good = all(part.isdigit() and part[0] != "0" for part in parts)
        good = good and [len(part) for part in parts] == [2] + [1] * (len(parts) - 1)
        return [int(part) for part in parts] if good and len(parts) in _TERMS else []

    def _row(self, numbers) -> np.ndarray:
        """Question, solution and padding, int32 [length]."""
        total, steps = int(numbers[0]), []
        for number in map(int, numbers[1:]):
            steps.append(f"{total}+{number}={total + number};")
            total += number
        text = "+".join(str(int(n)) for n in numbers) + "?" + "".join(steps) + f"#{total}"
        row = np.full(self.length, _END, np.int32)
        row[: len(text)] = [_IDS[sign] for sign in text]
        return row


def _answer_end(tokens: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Position of the first end of text after the question, or the length if there is none."""
    ends = (tokens == _END) & ~given.astype(bool)
    return np.where(ends.any(axis=1), np.argmax(ends, axis=1), tokens.shape[1])
