"""Synthetic tasks: reproducible samples and exact reports, checked by independent brute force."""

import itertools
from collections import Counter

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.pipeline import make_iterator
from flm_jax.data.tasks.arithmetic import ArithmeticTask
from flm_jax.data.tasks.grammar import ENGLISH, GrammarTask
from flm_jax.data.tasks.phrases import LawTask
from flm_jax.data.tasks.registry import TASKS, make_task
from flm_jax.data.tasks.sudoku import SudokuTask
from flm_jax.data.tasks.sudoku_solver import dig, random_grid, solve

PHRASES = [name for name in TASKS if name.startswith("phrases")]
WITH_PROBLEMS = [name for name in TASKS if name not in PHRASES]
# Ambiguous ("x x x" has two trees) and of few words: all sentences of up to 7 words can be listed.
SMALL = {
    "S": [("S S", 0.3), ("X Y", 0.3), ("x", 0.4)],
    "X": [("x", 0.9), ("Y X", 0.1)],
    "Y": [("y", 0.5), ("x", 0.5)],
}


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_right_and_depend_on_size_and_seed_alone(name):
    task = make_task(name)
    tokens = task.sample(20_000, seed=0)
    assert tokens.shape == (20_000, task.length)
    assert tokens.dtype == np.int32
    assert 0 <= tokens.min() <= tokens.max() < task.tokenizer.vocab_size
    np.testing.assert_array_equal(tokens, make_task(name).sample(20_000, seed=0))
    assert (tokens != task.sample(20_000, seed=1)).any()
    report = task.report(tokens)
    assert report["valid"] == 1
    for key in [k for k in report if k.endswith("total_variation")]:
        assert report[key] < 2 * report.get(f"{key}_chance", 0.01), key
    with pytest.raises(UserError, match=f"expected \\[N, {task.length}\\]"):
        task.report(np.zeros((3, task.length + 1)))


@pytest.mark.parametrize("name", TASKS)
def test_report_counts_exactly_the_corrupted_rows(name):
    task = make_task(name)
    tokens = task.sample(200, seed=0)
    tokens[:50] = -1
    assert task.report(tokens)["valid"] == 0.75
    noise = np.random.default_rng(0).integers(0, task.tokenizer.vocab_size, (500, task.length))
    assert task.report(noise)["valid"] < 0.6
    assert task.report(noise.clip(0, 0))["valid"] == 0


@pytest.mark.parametrize("name", WITH_PROBLEMS)
def test_problems_hide_the_answer_and_are_solved_by_keeping_the_rest(name):
    task = make_task(name)
    assert task.has_problems
    problems, given = task.problems(40, seed=3)
    assert problems.dtype == np.int32
    assert given.dtype == bool
    assert problems.shape == given.shape == (40, task.length)
    for again, first in zip(task.problems(40, seed=3), (problems, given)):
        np.testing.assert_array_equal(again, first)
    assert (problems[~given] == 0).all()
    assert (~given).any(axis=1).all()
    # Other right sequences solve nothing: what was given is gone.
    report = task.report_problems(task.sample(40, seed=5), problems, given)
    assert report["solved"] == report["kept"] < 0.2
    assert task.report_problems(problems, problems, given)["kept"] == 1
    assert task.report_problems(problems, problems, given)["solved"] < 0.2
    with pytest.raises(UserError, match="expected one shape"):
        task.report_problems(problems, problems[:, :1], given)


@pytest.mark.parametrize("name", PHRASES)
def test_phrases_have_no_problems(name):
    task = make_task(name)
    assert not task.has_problems
    with pytest.raises(UserError, match="no problems to complete"):
        task.problems(3, seed=0)
    with pytest.raises(UserError, match="no problems to complete"):
        task.report_problems(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 2), bool))


@pytest.mark.parametrize("name", PHRASES)
def test_samples_follow_the_law(name):
    task = make_task(name)
    assert isinstance(task, LawTask)
    assert sum(task.law.values()) == pytest.approx(1)
    assert task.report(task.sample(20_000, seed=0))["total_variation"] < 0.02


def test_phrases2_is_the_stated_law():
    task = make_task("phrases2")
    law = {task.tokenizer.decode(row): p for row, p in task.law.items()}
    assert law == {"new york": 0.5, "san diego": 0.5}
    assert (task.tokenizer.vocab_size, task.length) == (4, 2)


def test_phrases4_cannot_be_drawn_word_by_word():
    task = make_task("phrases4")
    tokens = task.sample(4000, seed=0)
    shuffled = np.stack([tokens[:, 0], np.roll(tokens[:, 1], 1)], axis=1)
    assert task.report(shuffled)["valid"] < 0.7


def test_report_is_exact():
    task = make_task("phrases2")
    new_york, san_diego = (task.tokenizer.encode(text) for text in ("new york", "san diego"))
    new_diego = task.tokenizer.encode("new diego")
    report = task.report(np.stack([new_york, new_york, san_diego, new_diego]))
    assert report == {"valid": 0.75, "total_variation": pytest.approx(0.25)}
    assert task.report(np.stack([new_york]))["total_variation"] == pytest.approx(0.5)
    assert task.report(np.stack([new_diego])) == {"valid": 0.0, "total_variation": 1.0}


def test_source_examples_depend_on_seed_and_index_alone():
    task = make_task("phrases4")
    short, long = task.source(10, seed=3), task.source(1000, seed=3)
    np.testing.assert_array_equal(short[7]["tokens"], long[7]["tokens"])
    rows = np.stack([long[i]["tokens"] for i in range(1000)])
    assert task.report(rows)["total_variation"] < 0.06
    other = task.source(1000, seed=4)
    assert any((other[i]["tokens"] != rows[i]).any() for i in range(20))
    batch = next(make_iterator(long, global_batch=16, seed=0))
    assert batch["tokens"].shape == (16, 2)
    assert batch["mask"].all()


@pytest.mark.parametrize("reverse", [False, True])
def test_arithmetic_against_python_integers(reverse):
    task = make_task("arithmetic_reversed" if reverse else "arithmetic")

    def numbers(row):
        text = task.tokenizer.decode(row).replace(" ", "")
        a, b, c = text.replace("=", "+").split("+")
        assert (len(a), len(b), len(c)) == (3, 3, 4)
        return [int(x[::-1] if reverse else x) for x in (a, b, c)]

    rows = task.sample(300, seed=0)
    assert all(a + b == c for a, b, c in map(numbers, rows))
    # Every digit of every answer counts.
    for place, row in itertools.product(range(8, 12), rows[:5]):
        wrong = row.copy()
        wrong[place] = (wrong[place] + 1) % 10
        assert task.report(wrong[None])["valid"] == 0
        assert task.report(wrong[None])["format"] == 1
    moved = np.roll(rows, 1, axis=1)
    assert task.report(moved)["format"] == 0
    problems, given = task.problems(50, seed=1)
    sums = [sum(map(int, pair)) for pair in _summands(task, problems, reverse)]
    answers = [str(c).zfill(4)[:: -1 if reverse else 1] for c in sums]
    solved = np.where(given, problems, 0)
    solved[:, 8:] = [[int(d) for d in answer] for answer in answers]
    assert task.report_problems(solved, problems, given) == {"solved": 1.0, "kept": 1.0}
    solved[:10, 11] = (solved[:10, 11] + 1) % 10
    assert task.report_problems(solved, problems, given)["solved"] == 0.8


def _summands(task, rows, reverse):
    for row in rows:
        pieces = task.tokenizer.decode(row).replace(" ", "").split("=")[0].split("+")
        yield [piece[::-1] if reverse else piece for piece in pieces]


def test_arithmetic_laws_by_listing_every_pair():
    task = make_task("arithmetic")
    carries, answers = Counter(), Counter()
    for a, b in itertools.product(range(1000), range(1000)):
        pattern = (a % 10 + b % 10 > 9) | (a % 100 + b % 100 > 99) << 1 | (a + b > 999) << 2
        carries[pattern] += 1
        answers[(a + b) // 100] += 1
    np.testing.assert_allclose(task.carry_law, [carries[i] / 1e6 for i in range(8)], atol=1e-12)
    np.testing.assert_allclose(task.answer_law, [answers[i] / 1e6 for i in range(20)], atol=1e-12)


def test_arithmetic_report_sees_collapse_to_easy_sums():
    task = make_task("arithmetic")
    a, b = np.random.default_rng(0).integers(0, 5, (2, 2000)) * 111  # never a carry
    report = task.report(task.write(a, b))
    assert report["valid"] == 1
    assert report["carry_total_variation"] == pytest.approx(1 - task.carry_law[0])
    assert report["answer_total_variation"] > 0.3
    assert report["repeated"] == 1 - 25 / 2000


def test_arithmetic_report_counts_what_is_not_valid_in_full():
    task = ArithmeticTask(digits=1)
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(10), np.arange(10)))
    right = task.write(a, b)
    assert task.report(right)["answer_total_variation"] == pytest.approx(0, abs=1e-12)
    report = task.report(np.concatenate([right, right[:, ::-1]]))
    assert report["valid"] == report["format"] == 0.5
    assert report["answer_total_variation"] == pytest.approx(0.5)
    assert report["carry_total_variation"] == pytest.approx(0.5)


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


def _parse_probability(rules, symbol, words):
    """Sum over all trees, by recursion over split points: no table, no arrays."""
    total = 0.0
    for side, p in rules[symbol]:
        parts = side.split()
        if len(parts) == 1:
            total += p * (words == (side,))
            continue
        for cut in range(1, len(words)):
            left = _parse_probability(rules, parts[0], words[:cut])
            if left:
                total += p * left * _parse_probability(rules, parts[1], words[cut:])
    return total


@pytest.fixture(scope="module")
def grammar():
    """One object for several tests: it keeps the entropy of its law."""
    return make_task("grammar")


@pytest.fixture(scope="module")
def small():
    """A grammar with its whole conditioned law: token tuple -> probability."""
    task = GrammarTask("small", SMALL, length=7)
    law = {}
    for n in range(1, 8):
        for words in itertools.product("xy", repeat=n):
            p = _parse_probability(SMALL, "S", words)
            if p:
                law[(*map(int, task.tokenizer.encode(" ".join(words))), *[0] * (7 - n))] = p
    total = sum(law.values())
    return task, {row: p / total for row, p in law.items()}


def test_grammar_likelihood_equals_enumeration(small):
    task, law = small
    rows = np.array(list(itertools.product(range(3), repeat=7)))  # all there is, filler included
    likelihood = task.log_likelihood(rows)
    assert np.exp(likelihood).sum() == pytest.approx(1, abs=1e-9)
    expected = [np.log(law.get(tuple(map(int, row)), 0) or 1e-300) for row in rows]
    finite = np.isfinite(likelihood)
    assert finite.sum() == len(law) > 50
    np.testing.assert_allclose(likelihood[finite], np.array(expected)[finite], rtol=1e-10)
    assert (np.array(expected)[~finite] < -600).all()
    lengths = Counter()
    for row, p in law.items():
        lengths[sum(map(bool, row))] += p
    np.testing.assert_allclose(task.length_law, [lengths[n] for n in range(8)], atol=1e-12)


def test_grammar_samples_follow_the_enumerated_law(small):
    task, law = small
    tokens = task.sample(50_000, seed=0)
    seen = Counter(map(tuple, tokens.tolist()))
    distance = sum(abs(seen[row] / 50_000 - p) for row, p in law.items()) / 2
    assert seen.keys() <= law.keys()
    assert distance < 0.015
    exact = -sum(p * np.log(p) for p in law.values())
    mean, error = task.entropy
    assert abs(mean - exact) < 4 * error < 0.05
    report = task.report(tokens)
    assert report["law_perplexity"] == pytest.approx(np.exp(exact / 7), rel=0.01)
    assert report["perplexity"] == pytest.approx(np.exp(exact / 7), rel=0.01)


def test_grammar_of_the_library_by_independent_parsing():
    task = make_task("grammar")
    tokens = task.sample(40, seed=0)
    texts = [task.tokenizer.decode([t for t in row if t]).split() for row in tokens]
    short = [i for i, words in enumerate(texts) if len(words) <= 10]
    assert len(short) > 20
    parsed = np.array([_parse_probability(ENGLISH, "S", tuple(texts[i])) for i in short])
    gaps = np.log(parsed) - task.log_likelihood(tokens[short])
    # One constant, the probability of at most 16 words; Monte Carlo for its value elsewhere.
    np.testing.assert_allclose(gaps, gaps[0], atol=1e-9)
    assert np.log(0.88) < gaps[0] < np.log(0.90)


@pytest.mark.parametrize(
    "text, valid",
    [
        ("the dog near many cats sleeps", True),
        ("the dog near many cats sleep", False),
        ("many cats that see the old dog sing", True),
        ("a dogs sleep", False),
        ("the dog", False),
        ("sleeps the dog", False),
        ("the dog . sleeps", False),
        (". the dog sleeps", False),
    ],
)
def test_grammar_demands_agreement_over_a_distance(grammar, text, valid):
    task = grammar
    ids = task.tokenizer.encode(text)
    row = np.pad(ids, (0, 16 - len(ids)))[None]
    assert task.report(row)["valid"] == float(valid)
    assert ("perplexity" in task.report(row)) == valid


def test_grammar_perplexity_tells_collapse_from_the_law(grammar):
    task = grammar
    tokens = task.sample(4000, seed=0)
    report = task.report(tokens)
    assert report["perplexity"] == pytest.approx(report["law_perplexity"], rel=0.03)
    likely = tokens[np.argsort(task.log_likelihood(tokens))[-1000:]]
    assert task.report(likely)["perplexity"] < 0.9 * report["law_perplexity"]


def test_errors():
    with pytest.raises(UserError, match="did you mean 'phrases2'"):
        make_task("phrase2")
    with pytest.raises(UserError, match="got size 0"):
        make_task("phrases2").source(0, seed=0)
    with pytest.raises(UserError, match="adding up to 0.5; expected 1"):
        GrammarTask("bad", {"S": [("x", 0.5)]})
    with pytest.raises(UserError, match="expected two symbols, or one word"):
        GrammarTask("bad", {"S": [("S S S", 0.5), ("x", 0.5)]})
    with pytest.raises(UserError, match="no sentence has at most 1 words"):
        GrammarTask("bad", {"S": [("X X", 1.0)], "X": [("x", 1.0)]}, length=1)
