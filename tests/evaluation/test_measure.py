"""Problems of tasks as models complete them, and tables of measurements."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from flm_jax.build import load as build_load
from flm_jax.build.flow import make_flow
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from flm_jax.data import loading
from flm_jax.data.tasks.registry import make_task
from flm_jax.evaluation import measure, tables
from flm_jax.evaluation.features import features_of, load_features
from flm_jax.inference import engine
from flm_jax.inference.language_model import load
from helpers.files import prepared_corpus
from helpers.runs import run, text_config, tiny_config


def untrained(task_name, **settings):
    task = make_task(task_name)
    config = tiny_config()
    config.data.task, config.model.length = task_name, task.length
    config.model.vocab_size = task.tokenizer.vocab_size
    choose(config, objective=settings.get("objective", "denoising"))
    choose(config, model="causal" if config.objective.name == "autoregressive" else "dit")
    config = check(config)
    net = make_network(config)
    flow = make_flow(config, net.vocab_size)
    model = build_load.Model(
        config, net, jax.jit(net.init)(jax.random.key(0)), flow, task.tokenizer, 0
    )
    data = loading.Data([], None, task.tokenizer, task)
    return measure.Subject(model, data, None, None)


@pytest.mark.parametrize("objective", ["masked_diffusion", "autoregressive"])
def test_problems_keep_what_is_given(objective):
    """Each row its own, also in a last, shorter batch."""
    row = measure.completions(untrained("arithmetic", objective=objective), 2, 10, 4, 0, None)
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
    row = measure.completions(untrained("arithmetic"), 2, 10, 4, 0, None)
    assert row["problem_solved"] == 1.0 and row["problem_solved_high"] >= 1.0 - 1e-9
    assert row["problem_calls"] == 2.0


def test_only_models_that_can_read_the_givens_are_asked():
    """Clues of a grid lie behind the places that an autoregressive model writes first."""
    assert (
        measure.completions(untrained("grammar", objective="autoregressive"), 2, 8, 8, 0, None)
        == {}
    )
    assert measure.completions(untrained("phrases2"), 2, 8, 8, 0, None) == {}


def test_a_table_has_every_column_of_any_row():
    rows = [
        {"model": "a", "kind": "flow", "calls": 1, "judge_perplexity": 3.0, "entropy_nats": 2.0},
        {"model": "data", "kind": "held out", "entropy_nats": 1.5, "likelihood": "exact"},
    ]
    text = tables.table(rows).splitlines()
    assert text[0] == "| model | kind | calls | judge perplexity | entropy nats | likelihood |"
    assert text[2] == "| a | flow | 1 | 3 | 2 |  |"
    assert text[3] == "| data | held out |  |  | 1.5 | exact |"


def test_an_exported_folder_is_measured_with_given_data_or_none(tmp_path):
    """It names no data: the columns of the samples alone, or all with data of its tokenizer."""
    data = prepared_corpus(tmp_path, "bytes")
    config = text_config(data)
    config.train.steps = 1
    run(config, tmp_path / "run")
    folder = str(tmp_path / "folder")
    load(tmp_path / "run").save_pretrained(folder)
    settings = {"samples": 4, "batch_size": 4, "seed": 0}
    (alone,) = measure.measure(folder, [2], **settings)
    features = load_features(folder)
    (full,) = measure.measure(folder, [2], **settings, data=data, features=features)
    assert 0.0 <= full.pop("mauve_low") <= full.pop("mauve") <= full.pop("mauve_high") <= 1.0
    pair, single = features(["a b", "a b c d"], 2), features(["a b"], 1)
    np.testing.assert_allclose(pair[0], single[0], atol=1e-5)
    assert np.abs(pair[0] - pair[1]).max() > 1e-3
    with pytest.raises(UserError, match="--features=judge and no judge"):
        features_of("judge", None)
    (own,) = measure.measure(str(tmp_path / "run"), [2], **settings)
    left_out = {"nll_nats_per_token", "data_entropy_nats", "kernel_distance"}
    assert left_out <= full.keys() and not left_out & alone.keys()
    timing = ("model", "seconds_per_1000_tokens")
    same = lambda row, keys: {k: v for k, v in row.items() if k in keys and k not in timing}
    assert same(full, own) == same(own, own) and same(alone, alone) == same(own, alone)
    assert measure.subject(folder).data is None and measure.subject(folder, data=data).data
    other = prepared_corpus(tmp_path, "characters")
    with pytest.raises(UserError, match="another tokenizer .*give --data=FOLDER"):
        measure.subject(folder, data=other)
    flags = [f"--model={folder}:2", "--num_samples=2", f"--json={tmp_path / 'rows.json'}"]
    line = [sys.executable, "-m", "flm_jax.evaluate", *flags]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "names no data: give --data=PREPARED" in done.stdout, done
    assert len(json.loads((tmp_path / "rows.json").read_text())) == 1
