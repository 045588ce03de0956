"""Embedding flows: trained, continued, exported, sampled in training, and distilled."""

import json

import numpy as np
import pytest

import flm_jax
from flm_jax.build.load import load_model
from flm_jax.config.schema import choose
from flm_jax.core.errors import UserError
from helpers.runs import assert_equal, changed, distilling, final_params, run, tiny_config

# A law that is learnt within a few steps.
QUICK = {
    "flow.law.refit_every": 2,
    "flow.law.decay": 0.5,
    "flow.law.bins": 8,
    "flow.law.learnt": "empirical",
    "model.normalised_table": True,
}


NLL = "train/nll_nats_per_token"
LINEAR = {"flow.name": "linear", "flow.noise": "unit", "flow.clock": "learnt"}


def embedding_config(path="variance_preserving", **values):
    config = tiny_config()
    choose(config, flow=path)
    config.flow.update({"noise": "unit", "clock": "learnt"})
    config.train.batch = 512  # the empirical law waits for 4096 rows
    config.train.steps = 12
    config.train.checkpoint_every = 6
    with config.unlocked():
        return changed(config, QUICK | values)


def map_config(teacher, path="variance_preserving", **values):
    config = distilling(embedding_config(path), "semigroup", teacher)
    config.train.steps = 4
    with config.unlocked():
        return changed(config, values)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    run(embedding_config(), workdir)
    return workdir


def test_the_learnt_law_is_part_of_the_model(flow, tmp_path):
    """Of workdir and exported folder alike; sampling is spaced by it."""
    model = load_model(flow)
    assert model.times.ready == 1.0
    grid = np.asarray(model.flow.grid(8))
    fresh = np.linspace(0.0, 1.0, 9)
    assert grid[0] == 0.0 and grid[-1] == 1.0 and np.all(np.diff(grid) > 0)
    assert np.abs(grid - fresh).max() > 0.02
    loaded = flm_jax.load(str(flow))
    loaded.save_pretrained(tmp_path / "folder")
    again = load_model(tmp_path / "folder")
    assert_equal(again.times, model.times)
    np.testing.assert_array_equal(again.flow.grid(8), grid)
    other = flm_jax.load(str(tmp_path / "folder"))
    assert other.sample(4, steps=3, seed=1).texts == loaded.sample(4, steps=3, seed=1).texts


def test_a_continued_run_is_bit_equal_to_an_uninterrupted_one(flow, tmp_path):
    config = embedding_config()
    config.train.steps = 7
    run(config, tmp_path / "run")
    config.train.steps = 12
    run(config, tmp_path / "run")
    assert_equal(final_params(tmp_path / "run"), final_params(flow))
    assert_equal(load_model(tmp_path / "run").times, load_model(flow).times)


def test_a_map_keeps_the_table_and_the_law_of_its_flow(flow, tmp_path):
    run(map_config(flow), tmp_path / "map")
    teacher, student = load_model(flow), load_model(tmp_path / "map")
    assert_equal(student.times, teacher.times)
    same = np.testing.assert_allclose  # averaged with itself, which rounds
    same(student.params["table"], teacher.params["table"], rtol=1e-6)
    head = lambda model: np.asarray(model.params["head"]["kernel"])
    assert np.abs(head(student) - head(teacher)).max() > 0
    assert len(flm_jax.load(str(tmp_path / "map")).sample(3, steps=1).texts) == 3


@pytest.mark.parametrize(
    "values, message",
    [
        (LINEAR, "config.flow.name is 'linear'"),
        ({"flow.law.low": -6.0}, "config.flow.law.low is -6.0"),
        ({"flow.clock": "identity"}, "config.flow.clock is 'identity'"),
        ({"objective.teacher": ""}, "the law of times is the teacher's"),
        ({"objective.name": "masked_diffusion"}, "two_time"),
    ],
)
def test_what_does_not_fit_the_flow_is_refused(flow, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        run(map_config(flow, **values), tmp_path / "map")
    assert not (tmp_path / "map").exists()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"flow.name": "linear", "flow.noise": "unit"}, "set clock to 'learnt' or 'identity'"),
        ({"model.posterior_input": True, "model.posterior_skip": True}, "set one of them"),
        ({"objective.form": "mse"}, "config.flow.clock 'learnt'"),
        ({"flow.law.low": 15.0}, "expected low < high"),
    ],
)
def test_what_cannot_be_learnt_is_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        run(embedding_config(**values), tmp_path / "run")


def test_the_recipe_of_langflow_trains_on_both_paths(tmp_path):
    """Skip connection and self-conditioning besides; its losses are finite, its record is kept."""
    for path in ("linear", "variance_preserving"):
        more = {"model.posterior_skip": True, "model.self_conditioning": True}
        more |= {"flow.law.learnt": "gumbel", "train.steps": 4, "eval.every": 2}
        run(embedding_config(path, **more), tmp_path / path)
        text = (tmp_path / path / "metrics.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        losses = [row[NLL] for row in rows if NLL in row]
        assert losses and np.all(np.isfinite(losses))
        assert (tmp_path / path / "schedule.jsonl").exists()


def test_embeddings_keep_their_length(flow):
    model = load_model(flow)
    table = np.asarray(model.net.table(model.params))
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), model.net.dim**0.5, rtol=1e-5)
    raw = np.linalg.norm(np.asarray(model.params["table"]), axis=1)
    assert np.abs(raw - model.net.dim**0.5).max() > 0.1


def test_the_likelihood_bound_of_an_embedding_flow_is_finite_and_above_the_entropy(flow):
    """phrases2 has an entropy of log 2 for two tokens."""
    found = flm_jax.load(str(flow)).score(["new york", "san diego"])
    assert np.all(np.isfinite(found.nats)) and np.mean(found.nats) > np.log(2)
