"""Entropy, diversity and repetition of texts, against loops and planted faults."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.tasks.registry import make_task
from flm_jax.metrics.distribution import kernel_distance
from flm_jax.metrics.intervals import interval
from flm_jax.metrics.text import (
    distinct_n,
    diversity_report,
    longest_repeats,
    overlaps,
    row_entropies,
    row_repetition,
    unigram_entropy,
)
from helpers.texts import english_rows, planted_faults


def test_entropy_and_repetition_see_collapse_but_not_noise():
    real = english_rows()
    planted = planted_faults(real)
    entropy = interval(np.mean, row_entropies(real))
    assert unigram_entropy(planted["one token"]) == 0
    assert unigram_entropy(planted["random tokens"]) > entropy.high
    assert unigram_entropy(planted["shuffled tokens"]) == pytest.approx(entropy.value)
    assert distinct_n(planted["one mode"], 2) < 0.05 * distinct_n(real, 2)
    assert distinct_n(planted["random tokens"], 2) > distinct_n(real, 2)
    loop = np.tile(real[:, :8], (1, 8))
    assert row_repetition(loop, 2).mean() > interval(np.mean, row_repetition(real, 2)).high + 0.3


def _longest_by_hand(row):
    row = list(row)
    for n in range(len(row) - 1, 0, -1):
        runs = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
        if len(set(runs)) < len(runs):
            return n
    return 0


def test_repetition_against_loops_over_tuples():
    rng = np.random.default_rng(0)
    tokens = np.concatenate([rng.integers(0, v, (20, 30)) for v in (2, 5, 100)])
    tokens = np.concatenate([tokens, np.arange(30)[None], np.zeros((1, 30), int)])
    assert longest_repeats(tokens).tolist() == [_longest_by_hand(row) for row in tokens]
    assert longest_repeats(tokens)[-2:].tolist() == [0, 29]
    for n in (1, 2, 3):
        grams = [[tuple(row[i : i + n]) for i in range(31 - n)] for row in tokens.tolist()]
        shares = [1 - len(set(row)) / len(row) for row in grams]
        np.testing.assert_allclose(row_repetition(tokens, n), shares)
        flat = [gram for row in grams for gram in row]
        assert distinct_n(tokens, n) == len(set(flat)) / len(flat)


def test_report_has_an_interval_wherever_one_is_sound():
    rows = make_task("grammar").sample(120, seed=0)
    report = diversity_report(rows[:60], rows[60:])
    for key in ("entropy_nats", "repetition_2", "longest_repeat_tokens", "kernel_distance"):
        assert report[f"{key}_low"] < report[key] < report[f"{key}_high"]
    assert report["entropy_nats"] == pytest.approx(unigram_entropy(rows[:60]))
    assert report["distinct_2"] == distinct_n(rows[:60], 2)
    assert report["kernel_distance"] == kernel_distance(rows[:60], rows[60:]).value
    single = diversity_report(rows[:60, :1], rows[60:, :1])
    assert single["repetition_2"] == 0 < single["distinct_2"]
    assert "kernel_distance" not in diversity_report(rows[:1], rows)


def test_errors():
    rows = np.zeros((3, 4), int)
    with pytest.raises(UserError, match="two or more rows"):
        kernel_distance(rows[:1], rows)
    with pytest.raises(UserError, match="of one length"):
        kernel_distance(rows, rows[:, :2])
    with pytest.raises(UserError, match="no order from 1 to 5"):
        kernel_distance(rows, rows, orders=(9,))
    with pytest.raises(UserError, match="n=5"):
        distinct_n(rows, 5)
    with pytest.raises(UserError, match="none empty"):
        interval(np.mean, np.zeros(0))
    with pytest.raises(UserError, match="level=95"):
        interval(np.mean, np.zeros(3), level=95)


def test_overlaps_against_loops_over_tuples():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (12, 9))
    tokens[3] = tokens[5]
    tokens[7] = 9 + np.arange(9)
    grams = [[tuple(row[i : i + 3]) for i in range(7)] for row in tokens.tolist()]
    for place, row in enumerate(grams):
        others = {gram for i, other in enumerate(grams) if i != place for gram in other}
        expected = np.mean([gram in others for gram in row])
        assert overlaps(tokens, 3)[place] == pytest.approx(expected)
    assert overlaps(tokens, 3)[[3, 5, 7]].tolist() == [1.0, 1.0, 0.0]
