"""What is learnt of the law of times, read back in this version's form and in the older one."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

import flm_jax
from flm_jax.build.load import load_model
from flm_jax.build.times import check_continuable, inherited_times
from flm_jax.config.check import check
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import UserError
from flm_jax.flows.gamma_fit import logistic_quantile
from flm_jax.flows.gamma_state import GammaConfig, state_of_knots
from flm_jax.flows.older_law import as_now, older_state
from flm_jax.training.trainer import train_run
from helpers.runs import changed, run, tiny_config

SHAPE = np.array([3.0, 1.2, 1.0], np.float32)
NEW = ("before", "decays", "inherit", "least_cell", "least_examples", "least_r2", "least_scale")


def config(**values):
    found = tiny_config()
    found.flow.update({"noise": "unit", "clock": "learnt"})
    found.train.steps = 2
    with found.unlocked():
        return changed(found, values)


@pytest.fixture
def older(tmp_path):
    """A run of an embedding flow as older versions left it."""
    folder = tmp_path / "run"
    run(config(), folder)
    record = json.loads((folder / "config.json").read_text())
    record["flow"]["law"] = {k: v for k, v in record["flow"]["law"].items() if k not in NEW}
    (folder / "config.json").write_text(json.dumps(record))
    state = older_state(GammaConfig(bins=64))._replace(shape=SHAPE, ready=jnp.ones(()))
    path = folder / "checkpoints" / "2" / "times"
    with ocp.StandardCheckpointer() as saver:
        saver.save(path, state, force=True)
    return folder


def test_an_older_law_is_loaded(older, tmp_path):
    """From a workdir and from a folder; sampling is spaced by it."""
    model = load_model(older)
    assert model.times.ready == 1.0
    np.testing.assert_array_equal(model.times.shape, SHAPE)
    assert model.config["flow"]["law"]["before"] == "uniform"
    assert np.abs(np.asarray(model.flow.grid(8)) - np.linspace(0, 1, 9)).max() > 0.02
    flm_jax.load(str(older)).save_pretrained(tmp_path / "folder")
    path = tmp_path / "folder" / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("times.")}
    state = older_state(GammaConfig(bins=64))._replace(shape=SHAPE, ready=jnp.ones(()))
    tensors |= {f"times.{name}": np.asarray(x) for name, x in state._asdict().items()}
    save_file(tensors, path, metadata={"step": "2"})
    again = load_model(tmp_path / "folder")
    np.testing.assert_array_equal(again.flow.grid(8), model.flow.grid(8))


def test_an_older_law_is_not_learnt_on(older):
    with pytest.raises(UserError, match="cannot be learnt on; expected .* another --workdir.$"):
        train_run(check(config(**{"train.steps": 4})), str(older))
    record = json.loads((older / "config.json").read_text())
    record["flow"]["clock"] = "identity"  # whose law says nothing
    (older / "config.json").write_text(json.dumps(record))
    check_continuable(older, read_config(older))


@pytest.mark.parametrize("kind", ["logistic", "empirical"])
def test_older_curves_become_knots(kind):
    cfg, u = GammaConfig(learnt=kind, bins=64), np.linspace(0.0, 1.0, 101)
    knots = jnp.linspace(-8.0, 4.0, 101)
    state = older_state(cfg)._replace(shape=SHAPE - jnp.array([5.0, 0.0, 0.0]), knots=knots)
    assert as_now(state, cfg).ready == 0.0
    found = as_now(state._replace(ready=jnp.ones(())), cfg)
    want = knots if kind == "empirical" else logistic_quantile(state.shape, jnp.asarray(u))
    np.testing.assert_allclose(found.knots[1:-1], want[1:-1], atol=1e-5)
    assert found.knots[0] == -10.0 and found.knots[-1] == 6.0 and found.ready == 1.0


def test_a_run_inherits_the_curve_of_the_one_it_starts_from():
    own = check(config(**{"flow.law.learnt": "empirical", "flow.law.bins": 12}))
    start = check(config(**{"flow.law.learnt": "logistic"}))
    law = GammaConfig(low=-5.0, high=14.0)
    times = jax.device_get(state_of_knots(np.linspace(-5.0, 14.0, 101), law))
    found = inherited_times(own, start, times)
    assert found.ready == 1.0 and found.cells.shape == (19, 12, 3)
    np.testing.assert_array_equal(found.knots, times.knots)
    assert inherited_times(own, check(config()), times) is None  # a Gumbel law has no knots
    assert inherited_times(own, start, None) is None
    alone = check(config(**{"flow.law.learnt": "empirical", "flow.law.inherit": False}))
    assert inherited_times(alone, start, times) is None
    with pytest.raises(UserError, match="gamma from -5.0 to 14.0, the law that is inherited from"):
        inherited_times(
            own, check(config(**{"flow.law.low": -6.0, "flow.law.learnt": "logistic"})), times
        )
