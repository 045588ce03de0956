"""Sudoku by bit masks: the units, a backtracking solver, and puzzles with one solution.

A grid is a list of 81 ints, row by row: 0 for an empty cell, else the digit 1 to 9.
"""

from collections.abc import Sequence

import numpy as np

CELLS = np.arange(81)
ROW, COLUMN = CELLS // 9, CELLS % 9
BOX = ROW // 3 * 3 + COLUMN // 3
UNITS = np.array([np.flatnonzero(kind == i) for kind in (ROW, COLUMN, BOX) for i in range(9)])

_ALL = 0b111_111_111
_PLACES = [(int(r), int(9 + c), int(18 + b)) for r, c, b in zip(ROW, COLUMN, BOX)]
_PEERS = [sorted({int(p) for unit in UNITS if i in unit for p in unit} - {i}) for i in range(81)]
_DIGITS = [[d for d in range(1, 10) if mask >> (d - 1) & 1] for mask in range(_ALL + 1)]


def solve(
    grid: Sequence[int], limit: int = 1, rng: np.random.Generator | None = None
) -> list[list[int]]:
    """Returns up to `limit` solutions of a grid; none if it contradicts itself.

    The search is depth first on the empty cell with the fewest candidates.

    Args:
      grid: grid of 81 ints.
      limit: number of solutions after which the search stops; 2 decides whether the solution is
        unique.
      rng: generator that puts candidates in random order; None for ascending order.
    """
    grid = [int(d) for d in grid]
    # One number for each row, column and box: its bit d - 1 is set if digit d stands there.
    used = [0] * 27
    for cell, digit in enumerate(grid):
        if digit:
            bit = 1 << (digit - 1)
            if any(used[unit] & bit for unit in _PLACES[cell]):
                return []
            for unit in _PLACES[cell]:
                used[unit] |= bit
    found: list[list[int]] = []
    _search(grid, used, [i for i in range(81) if not grid[i]], limit, rng, found)
    return found


def _search(grid, used, empty, limit, rng, found) -> None:
    if not empty:
        found.append(list(grid))
        return
    best, fewest = 0, 10
    for position, cell in enumerate(empty):
        r, c, b = _PLACES[cell]
        count = (_ALL & ~(used[r] | used[c] | used[b])).bit_count()
        if count < fewest:
            best, fewest = position, count
            if count <= 1:
                break
    if fewest == 0:
        return
    cell = empty[best]
    rest = empty[:best] + empty[best + 1 :]
    r, c, b = _PLACES[cell]
    digits = _DIGITS[_ALL & ~(used[r] | used[c] | used[b])]
    for digit in rng.permutation(digits).tolist() if rng and fewest > 1 else digits:
        bit = 1 << (digit - 1)
        grid[cell] = digit
        for unit in (r, c, b):
            used[unit] |= bit
        _search(grid, used, rest, limit, rng, found)
        for unit in (r, c, b):
            used[unit] ^= bit
        if len(found) >= limit:
            break
    grid[cell] = 0


def random_grid(rng: np.random.Generator) -> list[int]:
    """Returns a complete grid from the solver with random choices; not uniform over all grids."""
    return solve([0] * 81, rng=rng)[0]


def dig(solution: Sequence[int], clues: int, rng: np.random.Generator) -> list[int]:
    """Empties cells in random order as long as the solution is unique.

    Args:
      solution: a complete grid.
      clues: number of cells to leave; more are left if no further cell can be emptied.
    """
    grid = [int(d) for d in solution]
    left = 81
    for cell in rng.permutation(81).tolist():
        if left <= clues:
            break
        digit, grid[cell] = grid[cell], 0
        if _determined(grid, cell, digit):
            left -= 1
        else:
            grid[cell] = digit
    return grid


def _determined(grid: list[int], cell: int, digit: int) -> bool:
    """Whether an empty cell can hold `digit` alone, given that the grid with it has one solution.

    Only another digit in this very cell could give a second solution.
    """
    others = [d for d in range(1, 10) if d != digit and all(grid[p] != d for p in _PEERS[cell])]
    for other in others:
        grid[cell] = other
        possible = bool(solve(grid))
        grid[cell] = 0
        if possible:
            return False
    return True
