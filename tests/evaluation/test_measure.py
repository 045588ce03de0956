"""Problems of tasks as models complete them, and tables of measurements."""

import jax
import numpy as np
import pytest

from flm_jax.build import load as build_load
from flm_jax.build.flow import make_clock
from flm_jax.build.model import make_network
from flm_jax.build.sampler import PLAIN
from flm_jax.config.check import check
from flm_jax.data import loading
from flm_jax.data.tasks.registry import make_task
from flm_jax.evaluation import measure, tables
from flm_jax.inference import engine
from helpers.runs import tiny_config


def untrained(task_name, **settings):
    task = make_task(task_name)
    config = tiny_config()
    config.data.task, config.model.length = task_name, task.length
    config.model.vocab_size = task.tokenizer.vocab_size
    config.objective.name = settings.get("objective", "denoising")
    config.model.name = "causal" if config.objective.name == "autoregressive" else "dit"
    config = check(config)
    net = make_network(config)
    clock = make_clock(config, net.vocab_size)
    model = build_load.Model(
        config, net, jax.jit(net.init)(jax.random.key(0)), clock, task.tokenizer, 0
    )
    data = loading.Data([], None, task.tokenizer, task)
    return measure.Subject(model, data, None, None)


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_problems_keep_what_is_given(objective):
    """Each row its own, also in a last, shorter batch."""
    row = measure.completions(untrained("arithmetic", objective=objective), 2, 10, 4, 0, PLAIN)
    assert row["problem_kept"] == 1.0
    assert 0.0 <= row["problem_solved_low"] <= row["problem_solved"] < 0.5


def test_right_answers_solve_problems(monkeypatch):
    task = make_task("arithmetic")
    tokens, given = task.problems(10, measure._PROBLEM_SEED)
    right = task.sample(10, measure._PROBLEM_SEED)
    assert (right[given] == tokens[given]).all()

    def complete(model, asked, **settings):
        np.testing.assert_array_equal(asked.tokens, tokens)
        return engine.Completed(np.arange(10), right, 2.0)

    monkeypatch.setattr(engine, "complete", complete)
    row = measure.completions(untrained("arithmetic"), 2, 10, 4, 0, PLAIN)
    assert row["problem_solved"] == 1.0 and row["problem_solved_high"] >= 1.0 - 1e-9
    assert row["problem_calls"] == 2.0


def test_only_models_that_can_read_the_givens_are_asked():
    """Clues of a grid lie behind the places that an autoregressive model writes first."""
    assert (
        measure.completions(untrained("grammar", objective="autoregressive"), 2, 8, 8, 0, PLAIN)
        == {}
    )
    assert measure.completions(untrained("phrases2"), 2, 8, 8, 0, PLAIN) == {}


def test_a_table_has_every_column_of_any_row():
    rows = [
        {"model": "a", "kind": "flow", "calls": 1, "judge_perplexity": 3.0, "entropy_nats": 2.0},
        {"model": "data", "kind": "held out", "entropy_nats": 1.5, "likelihood": "exact"},
    ]
    text = tables.table(rows).splitlines()
    assert text[0] == "| model | kind | calls | judge perplexity | entropy nats | likelihood |"
    assert text[2] == "| a | flow | 1 | 3 | 2 |  |"
    assert text[3] == "| data | held out |  |  | 1.5 | exact |"
