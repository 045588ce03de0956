"""Sudoku: grids, puzzles of one solution, reports against sets, the solver."""

import itertools

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tasks.registry import make_task
from flm_jax.data.tasks.sudoku import SudokuTask
from flm_jax.data.tasks.sudoku_solver import dig, random_grid, solve


def _units_by_sets(row):
    grid = np.asarray(row).reshape(9, 9)
    boxes = [grid[r : r + 3, c : c + 3].ravel() for r in (0, 3, 6) for c in (0, 3, 6)]
    return [set(map(int, unit)) == set(range(9)) for unit in [*grid, *grid.T, *boxes]]


def test_sudoku_report_against_sets():
    task = make_task("sudoku")
    tokens = task.sample(60, seed=0)
    assert all(all(_units_by_sets(row)) for row in tokens)
    rng = np.random.default_rng(0)
    for row in tokens[:40]:  # two cells exchanged: rows, columns or boxes break
        i, j = rng.choice(81, 2, replace=False)
        row[[i, j]] = row[[j, i]]
    units = np.array([_units_by_sets(row) for row in tokens])
    report = task.report(tokens)
    assert report["valid"] == units.all(axis=1).mean() < 0.5
    assert report["units"] == pytest.approx(units.mean())
    assert 0.7 < report["units"] < 1
    right = task.sample(2, seed=1)
    for outside in (-1, 9):  # no token of the vocabulary stands for the digit it replaces
        assert task.report(np.where(right == 0, outside, right))["units"] == 0
        assert task.report(np.where(right == 8, outside, right))["units"] == 0


def test_sudoku_grids_differ_in_more_than_names():
    tokens = make_task("sudoku").sample(5000, seed=0)
    assert len(np.unique(tokens, axis=0)) == 5000
    # Pairs of digits exchanged between two rows and two columns: no symmetry changes their number.
    lines = list(itertools.combinations(range(9), 2))
    r, q, c, d = np.array([(*rows, *columns) for rows in lines for columns in lines]).T
    grids = tokens[:300].reshape(300, 9, 9)
    exchanged = (grids[:, r, c] == grids[:, q, d]) & (grids[:, r, d] == grids[:, q, c])
    assert len(np.unique(exchanged.sum(axis=1))) > 8
    # Every digit is as likely in every cell: 5000 / 9 with a standard deviation of 22.
    counts = (tokens[:, :, None] == np.arange(9)).sum(axis=0)
    assert abs(counts - 5000 / 9).max() < 5 * 22.3


def test_sudoku_puzzles_have_one_solution_and_as_many_clues_as_promised():
    task = make_task("sudoku")
    problems, given = task.problems(30, seed=1)
    clues = given.sum(axis=1)
    assert clues.min() >= 30
    assert clues.max() <= 40
    assert len(set(clues.tolist())) > 5
    solutions = [solve((row + 1) * mask, limit=2) for row, mask in zip(problems, given)]
    assert [len(found) for found in solutions] == [1] * 30
    right = np.array([found[0] for found in solutions]) - 1
    assert all(all(_units_by_sets(row)) for row in right)
    assert task.report_problems(right, problems, given) == {"solved": 1, "kept": 1, "units": 1}
    right[:3] = (right[:3] + 1) % 9  # valid grids, but other clues
    report = task.report_problems(right, problems, given)
    assert report == {"solved": 0.9, "kept": 0.9, "units": 1}
    with pytest.raises(UserError, match="expected 26 to 80"):
        SudokuTask(clues=(10, 20))


def test_solver_counts_solutions():
    rng = np.random.default_rng(0)
    grid = random_grid(rng)
    assert solve(grid, limit=2) == [grid]
    assert solve([1, 1] + [0] * 79) == []
    assert len(solve([0] * 81, limit=7)) == 7
    # Two digits that form a cycle can be exchanged: without it there are two solutions at least.
    puzzle = [0 if digit in (1, 2) else digit for digit in grid]
    found = solve(puzzle, limit=100)
    exchanged = [{1: 2, 2: 1}.get(digit, digit) for digit in grid]
    assert grid in found
    assert exchanged in found
    assert len({tuple(f) for f in found}) == len(found)
    # As few clues as it goes: no clue can be spared.
    puzzle = dig(grid, 0, rng)
    for cell in np.flatnonzero(puzzle):
        assert len(solve([0 if i == cell else d for i, d in enumerate(puzzle)], limit=2)) == 2
