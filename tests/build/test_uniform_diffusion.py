"""Uniform-state diffusion, its distillation and that of masked diffusion, from configurations."""

import shutil

import jax
import numpy as np
import pytest

import flm_jax
from flm_jax.build.data import open_data
from flm_jax.build.families.registry import family
from flm_jax.build.load import load_model
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.evaluation.measure import measure
from flm_jax.inference import engine
from flm_jax.metrics.likelihood import likelihood
from flm_jax.samplers.base import nothing_given
from flm_jax.training.trainer import train_run
from helpers.runs import assert_equal, baseline_config, final_params

UNSEEN = {"batches": 0, "samples": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("uniform")


@pytest.fixture(scope="module")
def trained(folder):
    """A model of two phrases; with a table of positions, as all noise looks alike from each."""
    config = baseline_config("uniform_diffusion", **{"model.position_table": True})
    config.eval.update(UNSEEN)
    assert train_run(check(config), str(folder / "base")) == 0
    return load_model(folder / "base")


def distilling(goal, teacher, **values):
    """Six steps in three rounds."""
    config = baseline_config(goal, **values)
    config.objective.teacher, config.objective.round_steps = str(teacher), 2
    config.train.update({"steps": 6, "checkpoint_every": 3, "batch": 32})
    config.eval.update(UNSEEN)
    return check(config)


def test_a_trained_model_follows_the_law_and_its_bound_is_near_the_entropy(trained):
    """ln 2 in 2 tokens: bound within 15%; in 64 calls 95% of the phrases are valid."""
    kind, data = family(trained.config), open_data(trained.config)
    row_nll = jax.jit(kind.row_likelihood(trained.config, trained.net, trained.flow))
    tokens = np.stack([data.valid[i]["tokens"] for i in range(1024)])
    batch = {"tokens": tokens, "mask": np.ones(tokens.shape, bool)}
    found = likelihood(row_nll, trained.params, [batch], draws=kind.draws)
    assert abs(found.nats_per_token - np.log(2) / 2) < 0.15 * np.log(2) / 2
    drawn = engine.draw(trained, nothing_given(1000, 2), steps=64, num=1000, seed=0)
    assert data.task.report(drawn.tokens)["valid"] > 0.95 and drawn.calls == 64


@pytest.mark.parametrize("goal", ["discrete_consistency", "through_time"])
def test_distilled_models_continue_export_and_evaluate(goal, trained, folder, capfd):
    if goal == "discrete_consistency":
        config = distilling(goal, folder / "base", **{"model.position_table": True})
    else:
        base = baseline_config("masked_diffusion", **{"train.steps": 1, "train.batch": 32})
        base.eval.update(UNSEEN)
        assert train_run(check(base), str(folder / "masked")) == 0
        config = distilling(goal, folder / "masked")
    assert train_run(config, str(folder / goal)) == 0
    assert "divergence_nats_per_token" in capfd.readouterr().out
    # Continued from step 3, within the second round, it ends as it did.
    shutil.copytree(folder / goal, folder / f"{goal}_again")
    shutil.rmtree(folder / f"{goal}_again/checkpoints/6")
    assert load_model(folder / f"{goal}_again").step == 3
    assert train_run(config, str(folder / f"{goal}_again")) == 0
    assert_equal(final_params(folder / goal), final_params(folder / f"{goal}_again"))
    model = flm_jax.load(folder / goal)
    model.save_pretrained(folder / f"{goal}_out")
    again = flm_jax.load(folder / f"{goal}_out")
    texts = [one.sample(4, steps=2, seed=2).texts for one in (model, again)]
    assert texts[0] == texts[1]
    row = next(iter(measure(str(folder / goal), [2], samples=64, batch_size=64, seed=0)))
    assert row["likelihood"] == "upper bound" and np.isfinite(row["nll_nats_per_token"])


@pytest.mark.parametrize(
    "goal, values, message",
    [
        ("through_time", {}, "starts from one of masked_diffusion"),
        ("discrete_consistency", {"objective.time_conditioning": False}, "set it to that"),
        ("discrete_consistency", {"objective.teacher": ""}, "distils a model; set config"),
        ("uniform_diffusion", {"model.two_time": True}, "has one time"),
        ("uniform_diffusion", {"model.name": "llama"}, "does not train|adapters: a llama learns"),
    ],
)
def test_what_does_not_fit_is_refused(goal, values, message, trained, folder, tmp_path):
    if goal != "uniform_diffusion":
        more = {"objective.teacher": str(folder / "base"), "model.position_table": True}
        values = more | values
    with pytest.raises(UserError, match=message):
        train_run(check(baseline_config(goal, **values)), str(tmp_path / "run"))
