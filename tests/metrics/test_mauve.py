"""MAUVE against numbers of its authors' own code, and what it must see."""

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.metrics.mauve import area, mauve, quantised

# Histograms that `mauve-text` 0.4 made of random features in 6 clusters, and its MAUVE of them.
PUBLISHED = [
    ([59, 53, 76, 35, 41, 36], [31, 31, 11, 42, 80, 45], 0.7925553935484881),
    ([62, 25, 61, 26, 101, 25], [34, 50, 24, 81, 13, 38], 0.5669011196852876),
]


def blobs(rng, weights, count=300):
    centres = 4.0 * np.eye(6, 12)
    return centres[rng.choice(6, p=weights, size=count)] + 0.3 * rng.normal(size=(count, 12))


@pytest.mark.parametrize("p, q, value", PUBLISHED)
def test_the_area_is_that_of_the_authors(p, q, value):
    p, q = (np.array(x) / sum(x) for x in (p, q))
    assert area(p, q) == pytest.approx(value, abs=1e-6)
    assert area(q, p) == pytest.approx(value, abs=1e-6)


def test_equal_laws_have_one_and_disjoint_ones_have_nothing():
    assert area(np.array([0.5, 0.5, 0.0]), np.array([0.5, 0.5, 0.0])) == pytest.approx(1.0)
    assert area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) < 0.02


def test_features_of_other_laws_lie_lower():
    rng = np.random.default_rng(0)
    even, uneven = [1 / 6] * 6, [0.5, 0.3, 0.1, 0.1, 0.0, 0.0]
    reference = blobs(rng, even)
    found = quantised(blobs(rng, even), reference, 6)
    groups = {tuple(np.unique(found.reference[reference.argmax(1) == i])) for i in range(6)}
    assert len(groups) == 6 and all(len(group) == 1 for group in groups)
    same, other = (mauve(blobs(rng, w), reference, draws=200) for w in (even, uneven))
    assert same.low <= same.value <= same.high <= 1.0 and other.high < same.low
    # One mode alone: what one call of a collapsed model writes.
    assert mauve(blobs(rng, [1, 0, 0, 0, 0, 0]), reference, draws=2).value < 0.2
    assert quantised(blobs(rng, even, 200), reference).count == 20


def test_bad_features_are_refused():
    good = np.ones((4, 3))
    for bad in (np.ones((1, 3)), np.ones((4, 2)), np.ones(4), good * np.nan):
        with pytest.raises(UserError, match="MAUVE got features"):
            mauve(good, bad)
