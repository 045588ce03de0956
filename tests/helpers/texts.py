"""Rows of English, faults planted in them, and the task of small functions."""

import pydoc_data.topics

import numpy as np

from flm_jax.data.tasks.functions import FunctionTask

FUNCTIONS = FunctionTask()

ROWS = 200


def english_rows():
    """Python's own manual, as rows of 64 bytes in random order."""
    text = "\n".join(v for _, v in sorted(pydoc_data.topics.topics.items())).encode()
    rows = np.frombuffer(text, np.uint8)[: len(text) // 64 * 64].reshape(-1, 64).astype(np.int32)
    return np.random.default_rng(0).permutation(rows)[: 2 * ROWS]


def planted_faults(real):
    """Faults of a generative model, planted in true rows."""
    rng = np.random.default_rng(1)
    seen = np.unique(real)
    random = rng.choice(seen, real.shape)
    return {
        "one mode": np.tile(real[:1], (len(real), 1)),
        "ten modes": real[rng.integers(0, 10, len(real))],
        "one token": np.full_like(real, real[0, 0]),
        "random tokens": random,
        "frequent tokens": rng.choice(real.ravel(), real.shape),
        "shuffled tokens": rng.permuted(real, axis=1),
        "a quarter noise": np.where(rng.random(real.shape) < 0.25, random, real),
        "a quarter of rows is one": np.where(np.arange(len(real))[:, None] % 4, real, real[:1]),
    }
