"""What the loop saves, and in what order: a step's checkpoint before all that is optional."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from flm_jax.checkpoints.workdir import latest_step
from flm_jax.config.check import check
from flm_jax.config.training import OptimConfig
from flm_jax.training.optim import fallen, learning_rate
from flm_jax.training.trainer import train_run
from helpers.loop import SMALL_STEP, Batches, restored, small_run, small_state
from helpers.runs import tiny_config


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def broken(params, tracked):
    raise IndexError("an id without a piece")


@pytest.mark.parametrize("every", [0, 6], ids=["at the end", "between checkpoints"])
def test_an_evaluation_that_raises_loses_no_step(tmp_path, every):
    with pytest.raises(IndexError, match="without a piece"):
        small_run(tmp_path, Batches(), evaluate=broken, eval_every=every)
    assert latest_step(tmp_path) == (every or 12)


def test_what_was_not_evaluated_is_when_the_run_goes_on(tmp_path):
    """Once, with the parameters of its step; the run is bit for bit an unstopped one."""
    norms = lambda params, tracked: ({"norm": float(np.sum(params["w"]))}, ["text"])
    settings = {"eval_every": 6, "log_every": 1}
    with pytest.raises(IndexError):
        small_run(tmp_path / "a", Batches(), evaluate=broken, **settings)
    for name in ("a", "a", "b"):
        small_run(tmp_path / name, Batches(), evaluate=norms, **settings)
    found = [[r for r in records(tmp_path / name) if "eval/norm" in r] for name in "ab"]
    assert [row["step"] for row in found[0]] == [6, 12] and found[0] == found[1]
    trained = [r["step"] for r in records(tmp_path / "a") if "train/skipped_in_a_row" in r]
    assert trained == list(range(1, 13))
    states = [restored(tmp_path / name) for name in "ab"]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_evaluation_of_no_batches_is_left_out(tmp_path):
    config = tiny_config()
    config.eval.batches = 0
    config.train.steps = 2
    assert train_run(check(config), str(tmp_path)) == 0
    last = records(tmp_path)[-1]
    assert "eval/sample_entropy_nats" in last and "eval/nll_nats_per_token" not in last


def test_a_run_in_a_thread_trains(tmp_path):
    """As sweeps in notebooks start them; Python lets the main thread alone handle signals."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(small_run, tmp_path, Batches()).result()
    assert latest_step(tmp_path) == 12


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_python_is_one_after_the_step_is_saved(tmp_path, number):
    """A cell that ends as if all were well lets the next one distil from half a flow."""

    class Interrupted(Batches):
        def __next__(self):
            if self.taken == 6:
                os.kill(os.getpid(), number)
            return super().__next__()

    with pytest.raises(KeyboardInterrupt, match="saved step 7; run the same command to continue"):
        small_run(tmp_path, Interrupted())
    assert latest_step(tmp_path) == 7
    small_run(tmp_path, Batches())
    assert latest_step(tmp_path) == 12


def test_a_run_of_so_many_seconds_ends_saves_and_is_finished(tmp_path):
    """It counts the time before an interrupt too, and tells the step how much is over."""
    slow = lambda: Batches(slow=3, seconds=0.6)
    told = []
    settings = {"steps": 10**9, "seconds": 0.5, "rate": lambda over: told.append(over) or over}
    small_run(tmp_path, slow(), **settings)
    step = latest_step(tmp_path)
    assert step >= 1 and told == sorted(told) and 1 < told[-1] < 10
    again = Batches()
    small_run(tmp_path, again, **settings)
    assert latest_step(tmp_path) == step and again.taken == step
    more = {"seconds": 600.0, "steps": step + 2, "checkpoint_every": 10**9}
    small_run(tmp_path, again, **settings | more)
    assert latest_step(tmp_path) == step + 2


def test_the_rate_scales_what_is_added_to_the_parameters():
    half, whole, plain = (
        SMALL_STEP(small_state(), {}, batch, *rate)[0].params["w"] - small_state().params["w"]
        for batch in [next(Batches())]
        for rate in ([np.float32(0.5)], [np.float32(1.0)], [])
    )
    np.testing.assert_allclose(2 * half, whole, rtol=1e-3)
    np.testing.assert_array_equal(whole, plain)


def test_cosine_of_seconds_is_that_of_steps():
    cfg = OptimConfig(1e-2, 0, "cosine", 0.9, 0.99, 1e-8, 0.0, 1.0, 0.9)
    rate = learning_rate(cfg, 100)
    for step in (0, 30, 50, 100):
        np.testing.assert_allclose(rate(step), 1e-2 * fallen(step / 100), rtol=1e-5)


def test_a_timed_run_trains_with_its_cosine_and_without_an_evaluation(tmp_path):
    config = tiny_config()
    config.train.steps, config.train.seconds = 10**6, 1.5
    config.optim.schedule = "cosine"
    config.eval.batches, config.eval.samples = 0, 0
    assert train_run(check(config), str(tmp_path)) == 0
    found = records(tmp_path)
    assert latest_step(tmp_path) >= found[-1]["step"] > 0
    assert not any(key.startswith("eval/") for record in found for key in record)
