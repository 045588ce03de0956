"""Sudoku grids of 81 tokens: unconditional validity, and puzzles with exactly one solution."""

import functools

import numpy as np

from flm_jax.core.errors import require
from flm_jax.data.tasks.base import Task, repeated
from flm_jax.data.tasks.sudoku_solver import UNITS, dig, random_grid
from flm_jax.data.tokenizers.builtin import WordTokenizer

_POOL, _POOL_SEED = 1024, 9


class SudokuTask(Task):
    """Complete 9x9 grids, row by row; token i is the digit i + 1.

    The distribution is uniform over 1024 fixed grids (from a randomised solver, so most likely
    essentially different) and over the group of symmetries that keep a grid valid: renaming digits,
    permuting bands and stacks, rows within bands and columns within stacks, and transposition. The
    group has 9! 6^8 2 = 1.2e12 elements, so no sample is ever seen twice.
    """

    name = "sudoku"
    length = 81
    has_problems = True

    def __init__(self, clues: tuple[int, int] = (30, 40)):
        """Sets the difficulty of the problems.

        Args:
          clues: smallest and largest number of clues of a problem; each number in between is
            equally likely.
        """
        low, high = clues
        # Below some 26 clues the search for a cell that can still be emptied mostly fails.
        require(26 <= low <= high <= 80, f"task 'sudoku' got clues={clues}; expected 26 to 80")
        self.clues = clues
        self.tokenizer = WordTokenizer([*"123456789"])

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        # Lines are permuted within bands, and bands too; grids are transposed or not, and digits
        # renamed: each of these takes a valid grid to a valid one.
        base = _pool()[rng.integers(0, _POOL, count)]
        rows, columns = _line_order(rng, count), _line_order(rng, count)
        flip = rng.random(count) < 0.5
        cells = rows[:, :, None] * 9 + columns[:, None, :]
        cells = np.where(flip[:, None, None], cells.swapaxes(1, 2), cells).reshape(count, 81)
        names = rng.permuted(np.tile(np.arange(9, dtype=np.int32), (count, 1)), axis=1)
        return np.take_along_axis(names, np.take_along_axis(base, cells, axis=1), axis=1)

    def report(self, tokens: np.ndarray) -> dict[str, float]:
        """Validity of grids.

        Returns:
          valid: fraction of grids in which all 27 rows, columns and boxes hold nine digits.
          units: fraction of rows, columns and boxes that do, over all grids.
          repeated: fraction of grids equal to an earlier one; 0 for true samples.
        """
        tokens = self._checked(tokens)
        good = _good_units(tokens)
        return {
            "valid": float(good.all(axis=1).mean()),
            "units": float(good.mean()),
            "repeated": repeated(tokens),
        }

    def problems(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Puzzles with `clues` prescribed cells and a unique solution each; about 2 ms a puzzle."""
        rng = np.random.default_rng(seed)
        grids = self.draw(rng, count) + 1
        clues = rng.integers(self.clues[0], self.clues[1], size=count, endpoint=True)
        puzzles = [dig(grid, int(n), rng) for grid, n in zip(grids, clues)]
        puzzles = np.array(puzzles, np.int32).reshape(count, 81)
        return np.maximum(puzzles - 1, 0), puzzles > 0

    def report_problems(
        self, tokens: np.ndarray, problems: np.ndarray, given: np.ndarray
    ) -> dict[str, float]:
        """Figures; `solved` is the fraction of valid grids with kept clues; see also `report`."""
        tokens = self._checked(tokens)
        kept, good = self.kept(tokens, problems, given), _good_units(tokens)
        return {
            "solved": float((kept & good.all(axis=1)).mean()),
            "kept": float(kept.mean()),
            "units": float(good.mean()),
        }


@functools.cache
def _pool() -> np.ndarray:
    """Grids on which the symmetries act, int32 [_POOL, 81] of 0 to 8; takes half a second."""
    rng = np.random.default_rng(_POOL_SEED)
    return np.array([random_grid(rng) for _ in range(_POOL)], np.int32) - 1


def _line_order(rng: np.random.Generator, count: int) -> np.ndarray:
    """Uniform permutations of 9 lines that keep the three bands together, int [count, 9]."""
    bands = np.argsort(rng.random((count, 3, 1)), axis=1)
    within = np.argsort(rng.random((count, 3, 3)), axis=2)
    return (bands * 3 + within).reshape(count, 9)


def _good_units(tokens: np.ndarray) -> np.ndarray:
    """Whether each of the 27 units holds all nine digits, bool [N, 27]."""
    # One bit for each digit: a unit is right where nine cells set all nine of them.
    inside = ((tokens >= 0) & (tokens < 9)).astype(np.int16)
    bits = inside << np.where(inside, tokens, 0).astype(np.int16)
    return np.bitwise_or.reduce(bits[:, UNITS], axis=2) == 0b111_111_111
