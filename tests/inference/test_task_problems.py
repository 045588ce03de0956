"""Problems of tasks are completed batch by batch."""

from types import SimpleNamespace

import numpy as np
import pytest

from flm_jax.data.tasks.registry import make_task
from flm_jax.inference import engine, task_problems
from flm_jax.samplers.base import Samples


@pytest.mark.parametrize("rows", [1, 4])
def test_problems_are_completed_batch_by_batch(monkeypatch, rows):
    """By a sampler that is right wherever the first summand is odd, in 3 calls if it is even."""
    task = make_task("arithmetic1")

    def sampler(*args):
        def run(key, params, given, extra):
            tokens = np.asarray(given.tokens)
            right = task.write(tokens[:, 0], tokens[:, 2])
            odd = tokens[:, :1] % 2 == 1
            out = np.where(given.mask | odd, right, (right + 1) % 10)
            return Samples(out, out[None], out[None], np.where(odd.all(), 1, 3))

        return run, {}

    monkeypatch.setattr(engine, "_program", sampler)
    model = SimpleNamespace(
        config={"objective": {"name": "masked_diffusion"}},
        net=None,
        flow=None,
        params=None,
        shared=False,
    )
    found, calls = task_problems.solve(model, task, 10, 3, rows, 0)
    odd = task.problems(10, task_problems._SEED)[0][:, 0] % 2 == 1
    assert found["solved"] == odd.mean()
    groups = [odd[np.arange(i, i + rows) % 10].all() for i in range(0, 10, rows)]
    assert calls == np.mean(np.where(groups, 1, 3))
