"""The sample that tokenizers are trained on: bounded, even, the same each time."""

import numpy as np
import pytest

from flm_jax.data.tokenizers.line_sample import sample_lines


def test_a_small_corpus_is_taken_whole():
    lines = ["a", "", "bb", "a"]
    assert sample_lines(iter(lines), 4) == lines
    assert sample_lines(iter([]), 4) == []


@pytest.mark.parametrize("characters", [1, 250, 5000, 40_000])
def test_the_sample_has_the_characters_asked_for_and_the_order_of_the_corpus(characters):
    lines = [f"{i:05d}" for i in range(10_000)]
    sample = sample_lines(iter(lines), characters)
    assert characters <= 5 * len(sample) < characters + 5
    assert sample == sorted(set(sample))
    assert sample == sample_lines(iter(lines), characters)


@pytest.mark.parametrize("period", [2, 3, 10, 64, 89, 144])
def test_the_sample_is_spread_evenly_and_without_the_periods_of_a_corpus(period):
    numbers = np.array(list(map(int, sample_lines((f"{i:05d}" for i in range(80_000)), 40_000))))
    tenths = np.bincount(numbers // 8000, minlength=10)
    np.testing.assert_allclose(tenths, 800, atol=120)  # four deviations
    places = np.bincount(numbers % period, minlength=period)
    np.testing.assert_allclose(places, 8000 / period, atol=5 * (8000 / period) ** 0.5)


def test_long_lines_do_not_break_the_bound():
    assert sample_lines(iter(["x" * 1000]), 10) == ["x" * 1000]
    sample = sample_lines(("x" * 1000 for _ in range(100)), 10)
    assert len(sample) == 1
