"""Texts that a model writes to learn from end with their first end."""

import numpy as np
import pytest

from flm_jax.config.schema import base_config
from flm_jax.inference import self_generation


def test_texts_end_with_their_first_end():
    tokens = np.array([[9, 1, 2, 9, 3], [9, 1, 2, 3, 4]])
    given = np.array([[True, False, False, False, False]] * 2)
    mask = self_generation.ended(tokens, given, {9})
    assert mask.tolist() == [[True] * 4 + [False], [True] * 5]
    mask = self_generation.ended(tokens, given, {9, 2})
    assert mask.tolist() == [[True] * 3 + [False] * 2] * 2
    assert self_generation.ended(tokens, given, frozenset()).all()


@pytest.mark.parametrize(
    "values, counts",
    [
        ({"model.mask_id": 21}, True),  # as published: LLaDA
        ({"model.mask_id": -1}, False),
        ({"model.mask_id": 21, "data.task": "arithmetic"}, False),
        ({"data.chat": (("file", 1.0),)}, True),
        ({"data.chat": (("file", 1.0),), "data.padding": "ignored"}, False),
    ],
)
def test_the_tail_of_an_answer_counts_where_rows_were_filled_with_ends(values, counts):
    config = base_config(model="llama", objective="masked_diffusion")
    config.update_from_flattened_dict(values)
    assert self_generation.counts_tail(config.to_dict()) == counts
