"""What steering loads: weaker models, trained rewards; and the command that sweeps an option."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.build.sampler import choose_sampler
from flm_jax.config.schema import base_config
from flm_jax.core.errors import UserError
from flm_jax.distributed.sharding import MeshConfig, make_mesh
from flm_jax.flows.clocks import identity_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.noise import UnitNoise
from flm_jax.inference import engine, guides, text_reward
from flm_jax.inference.text_reward import load_text_reward
from flm_jax.samplers.base import nothing_given
from flm_jax.training.reward_trainer import train_text_reward
from helpers.runs import run, tiny_config


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a trained flow on phrases, and a reward for it."""
    folder = tmp_path_factory.mktemp("models")
    config = tiny_config()
    config.train.steps = 2
    run(config, folder / "flow")
    how = {"steps": 150, "batch": 64, "lr": 3e-3, "seed": 0}
    found = train_text_reward(str(folder / "flow"), "san", str(folder / "reward"), **how)
    assert found.accuracy > 0.99 and 0.4 < found.matching < 0.6 and found.loss < 0.1
    return folder


OTHERS = {
    "weak": ("denoising", {"dim": 8}),
    "map": ("semigroup", {"two_time": True}),
    "masked": ("masked_diffusion", {}),
    "later": ("denoising", {"dim": 8}),
}


@pytest.fixture(autouse=True)
def untrained(models, monkeypatch):
    """Models of OTHERS are made afresh, with the flow's tokenizer, where they are loaded."""
    load = guides.load_model

    def load_model(workdir, attention=None):
        name = str(workdir).rpartition("/")[2]
        if name not in OTHERS:
            return load(workdir, attention=attention)
        flow, (goal, change) = load(models / "flow"), OTHERS[name]
        config = base_config(objective=goal).to_dict()
        config["model"] = flow.config["model"] | change
        net = make_network(config)
        made = flow._replace(config=config, net=net, params=net.init(jax.random.key(1)))
        return made._replace(flow=onehot_flow(identity_clock())) if name == "later" else made

    monkeypatch.setattr(guides, "load_model", load_model)


def drawn(models, name="flow", **fields):
    model = guides.load_model(models / name)
    given = nothing_given(32, 2)
    sampler = choose_sampler(model.config, **fields)
    return engine.draw(model, given, steps=2, num=64, seed=0, sampler=sampler)


def test_a_weaker_model_of_another_width_guides(models):
    plain, weak = drawn(models), str(models / "weak")
    same = drawn(models, weak=weak, guidance=1.0)
    np.testing.assert_array_equal(same.steps_confidence, plain.steps_confidence)
    guided = drawn(models, weak=weak, guidance=3.0)
    assert (guided.steps_confidence != plain.steps_confidence).any()
    assert (plain.calls, same.calls, guided.calls) == (2, 2, 4)


def test_a_model_guides_itself_nowhere_at_any_temperature(models):
    """Both of its answers have the temperature, so that their difference is zero."""
    same = {"weak": str(models / "flow"), "guidance": 3.0}
    for temperature in (1.0, 0.5):
        plain = drawn(models, denoiser_temperature=temperature)
        guided = drawn(models, denoiser_temperature=temperature, **same)
        np.testing.assert_allclose(guided.steps_confidence, plain.steps_confidence, atol=1e-5)
    assert (plain.steps_confidence != drawn(models).steps_confidence).any()


def test_a_weaker_model_guides_one_on_two_devices(models):
    model = guides.load_model(models / "flow")
    sampler = choose_sampler(model.config, weak=str(models / "weak"), guidance=3.0)
    how = {"steps": 2, "num": 64, "seed": 0, "sampler": sampler}
    one = engine.draw(model, nothing_given(32, 2), **how)
    split = load_model(models / "flow", make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2]))
    two = engine.draw(split, nothing_given(32, 2), **how)
    np.testing.assert_array_equal(two.tokens, one.tokens)


def test_a_model_in_training_has_no_fixed_embeddings(models):
    """With noise that is added to embeddings, a weaker model must have the same ones."""
    model = guides.load_model(models / "flow")
    unit = model._replace(params={}, flow=dataclasses.replace(model.flow, noise=UnitNoise()))
    sampler = choose_sampler(model.config, weak=str(models / "weak"), guidance=3.0)
    with pytest.raises(UserError, match="other embeddings, as any model has for one in training"):
        guides.load_guides(unit, sampler)


def test_guidance_by_a_prompt_needs_one(models):
    how = {"weak_prompt": "noised", "guidance": 2.0}
    with pytest.raises(UserError, match="no given tokens; expected a prompt or an infill"):
        drawn(models, **how)
    cfg = choose_sampler(guides.load_model(models / "flow").config, **how)
    assert engine.unprompted(cfg).guidance == 1.0
    assert engine.unprompted(engine.unprompted(cfg)) == engine.unprompted(cfg)


def test_dropout_need_not_be_trained_with(models):
    assert guides.load_model(models / "flow").config["model"]["dropout"] == 0.0
    guided = drawn(models, weak_dropout=0.5, guidance=3.0)
    assert (guided.steps_confidence != drawn(models).steps_confidence).any()
    records = list(engine.trajectory(guides.load_model(models / "flow"), guided))
    assert [r["call"] for r in records[:2]] == [2, 4]


def test_a_trained_reward_is_read_back(models):
    """Its score of clean texts: near log 1 for those that match, far below for the others."""
    model = guides.load_model(models / "flow")
    reward, params = load_text_reward(str(models / "reward"), model.tokenizer)
    texts = np.stack([model.tokenizer.encode(t) for t in ("san diego", "new york")])
    score = reward.score(params, reward.table(params)[texts])
    assert score.shape == (2,) and score[0] > -0.1 and score[1] < -2.0
    assert list(text_reward.matches(texts, model.tokenizer, "san")) == [True, False]
    gradient = jax.grad(lambda x: reward.score(params, x).sum())(reward.table(params)[texts])
    assert np.abs(gradient).max() > 1e-3
    moved = drawn(models, reward=str(models / "reward"), reward_scale=5.0)
    assert (moved.steps_confidence != drawn(models).steps_confidence).any()


@pytest.mark.parametrize(
    "name, fields, message",
    [
        (
            "flow",
            {"weak": "masked", "guidance": 2.0},
            "a model of objective masked_diffusion; expected a fl",
        ),
        ("flow", {"weak": "map", "guidance": 2.0}, "objective semigroup; expected a flow"),
        ("map", {"weak": "flow", "guidance": 2.0}, "objective denoising; expected a flow map"),
        ("flow", {"weak": "later", "guidance": 2.0}, "trained with another flow"),
        ("flow", {"weak": "nothing", "guidance": 2.0}, "nothing is no workdir"),
        ("flow", {"reward": "flow", "reward_scale": 1.0}, "flow has no reward.json"),
    ],
)
def test_unfitting_models_are_refused(models, monkeypatch, name, fields, message):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled before refusing")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    paths = {k: str(models / v) for k, v in fields.items() if k in ("weak", "reward")}
    with pytest.raises(UserError, match=message):
        drawn(models, name, **(fields | paths))


@pytest.mark.parametrize("pattern, message", [("(", "no regular expression"), ("zebra", "none of")])
def test_useless_patterns_are_refused(models, pattern, message):
    with pytest.raises(UserError, match=message):
        train_text_reward(
            str(models / "flow"), pattern, "unused", steps=1, batch=8, lr=1e-3, seed=0
        )


def test_an_option_is_swept(models, tmp_path):
    command = [sys.executable, "-m", "flm_jax.sweep", f"--workdir={models}/flow", "--steps=2"]
    command += ["--num_samples=64", f"--reward={models}/reward", "--option=reward_scale"]
    command += ["--values=0,2", f"--json={tmp_path}/rows.json", f"--plot={tmp_path}/plot.png"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    *rows, data = rows
    assert data["model"] == "data" and data["task_valid"] == 1.0
    assert [row["reward_scale"] for row in rows] == [row["swept"] for row in rows] == [0.0, 2.0]
    assert [row["calls"] for row in rows] == [2, 4]
    assert all(0 <= row["matching_low"] <= row["matching"] <= 1 for row in rows)
    assert "task valid" in done.stdout and (tmp_path / "plot.png").stat().st_size > 5000
    wrong = subprocess.run([*command, "--values=a"], capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2 and len(wrong.stderr.strip().splitlines()) == 1, wrong.stderr
