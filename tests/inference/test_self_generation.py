"""Texts that a model writes to learn from end with their first end."""

import numpy as np

from flm_jax.inference import self_generation


def test_texts_end_with_their_first_end():
    tokens = np.array([[9, 1, 2, 9, 3], [9, 1, 2, 3, 4]])
    given = np.array([[True, False, False, False, False]] * 2)
    mask = self_generation.ended(tokens, given, {9})
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]
    mask = self_generation.ended(tokens, given, {9, 2})
    assert mask.tolist() == [[True] * 3 + [False] * 2] * 2
    assert self_generation.ended(tokens, given, frozenset()).all()
