"""The two-stage distillation from configuration to texts: a flow, its residual, the map of both."""

import json

import pytest

from flm_jax.build.families.registry import make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.build.sampler import make_sampler
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from helpers.runs import distilling, run, tiny_config


def _config(objective, teacher, **values):
    config = distilling(tiny_config(), objective, teacher)
    config.train.steps, config.train.log_every = 3, 1
    if objective == "residual":
        config.eval.batches = config.eval.samples = 0
        config.objective.weighting = "learned"
    config.objective.update(values)
    return config


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    config = tiny_config()
    config.train.steps = 3
    run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def residual(flow, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("residual") / "run"
    run(_config("residual", flow), workdir)
    return workdir


def test_both_stages_train_and_the_second_writes(flow, residual, tmp_path):
    run(_config("merge", flow, residual=str(residual)), tmp_path / "merge")
    for workdir, name in ((residual, "residual"), (tmp_path / "merge", "merge")):
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        values = [row[key] for row in rows if (key := f"train/{name}_squared_per_token") in row]
        assert len(values) == 3 and all(0.0 <= value < 2.0 for value in values)
    model = load_model(tmp_path / "merge")
    make_sampler(model.config, model.net, model.flow, 2)
    first = load_model(residual)
    with pytest.raises(UserError, match="writes no text by itself; distil it and its flow"):
        make_sampler(first.config, first.net, first.flow, 2)


def _refused(config, message):
    config = check(config)
    config["model"]["vocab_size"] = 8
    net = make_network(config)
    teacher = net if config["objective"]["teacher"] else None
    with pytest.raises(UserError, match=message):
        make_objective(config, net, make_flow(config, 8), teacher)


def test_what_the_stages_refuse():
    _refused(_config("residual", ""), "needs a frozen flow")
    _refused(_config("residual", "x", diagonal=0.5), "no rows with t = s, got .* 0.5")
    _refused(_config("merge", "x"), "set config.objective.residual")
    looking = _config("residual", "x")
    looking.eval.batches = 1
    _refused(looking, "neither probabilities nor texts")
    one = _config("merge", "x", residual="y")
    one.model.two_time = False
    _refused(one, "set config.model.two_time = True")


def test_what_is_no_residual(flow, residual, tmp_path):
    with pytest.raises(UserError, match="of objective denoising; expected one of objective resid"):
        run(_config("merge", flow, residual=str(flow)), tmp_path / "a")
    config = _config("merge", flow, residual=str(residual))
    config.model.cond_dim = 8
    with pytest.raises(UserError, match="cond_dim"):
        run(config, tmp_path / "b")
