"""Runs that align a masked diffusion model on texts that it wrote itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.build.adapters import trained_params
from flm_jax.build.families.x_prediction import base_params
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.build.sampler import choose_sampler
from flm_jax.checkpoints import config_file
from flm_jax.core.errors import UserError
from flm_jax.data.self_generated import open_generated
from flm_jax.denoiser.forward import denoise
from flm_jax.inference import self_generation, task_problems
from flm_jax.models.lora import split
from flm_jax.samplers.x_prediction import XPredictionConfig
from helpers import adapted_runs
from helpers.adapted_runs import run
from helpers.alignment import NET, TOKENS

# Whole runs, on sums of one digit.
_SUMS = {"data.task": "arithmetic1", "model.length": 6, "optim.ema_decay": 0.5}
_SUMS |= {"train.steps": 30, "train.checkpoint_every": 30}


def tiny(**values):
    return adapted_runs.tiny(**(_SUMS | values))


GREEDY = dict(
    steps=2, seed=1, choose=lambda config: choose_sampler(config, "confidence", temperature=0.0)
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alignment")
    run(tiny(), folder / "base")
    self_generation.generate(
        str(folder / "base"), str(folder / "own"), num=100, batch_size=40, **GREEDY
    )
    return folder


def align(folder, **values):
    more = {"objective.name": "alignment", "data.generated": str(folder / "own")}
    more |= {"objective.teacher": str(folder / "base"), "train.steps": 20}
    return tiny(**(more | {"train.checkpoint_every": 20} | values))


def test_an_interrupted_generation_continues_with_the_same_texts(runs, tmp_path):
    def stop(done, parts):
        raise KeyboardInterrupt

    out = tmp_path / "own"
    settings = dict(num=100, batch_size=40, **GREEDY)
    with pytest.raises(KeyboardInterrupt):
        self_generation.generate(str(runs / "base"), str(out), show=stop, **settings)
    with pytest.raises(UserError, match="lacks 2 of 3 parts"):
        open_generated(str(out), 6)
    assert "2 of 3 parts" in self_generation.generate(str(runs / "base"), str(out), **settings)
    whole, again = (open_generated(str(folder), 6) for folder in (runs / "own", out))
    for a, b in zip(whole[:2], again[:2]):
        assert a.fingerprint == b.fingerprint
    assert (len(whole[0]), len(whole[1])) == (95, 5)
    row = whole[0][3]
    assert row["prompt"].tolist() == [True] * 4 + [False] * 2 and row["mask"].all()
    with pytest.raises(UserError, match="begun with another seed, steps"):
        self_generation.generate(
            str(runs / "base"), str(out), **(settings | {"steps": 1, "seed": 2})
        )


def figures_of(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key[5:]: value for key, value in lines[-1].items() if key.startswith("eval/")}


def test_alignment_lowers_the_distances_and_says_so_beside_the_base(runs):
    model = run(align(runs), runs / "aligned")
    found = figures_of(runs / "aligned")
    for kind in ("masked", "unmasked"):
        name = f"{kind}_squared_distance_per_token"
        assert found[name] < 0.95 * found[f"base_{name}"], kind
    assert "base_masked_nll_nats_per_token" in found
    assert task_problems.task_of(model).name == "arithmetic1"
    solved, calls = task_problems.solve(
        model, task_problems.task_of(model), 20, 2, 20, 0, XPredictionConfig()
    )
    assert 0.0 <= solved["solved"] <= 1.0 and calls <= 2


def test_adapters_may_be_aligned_in_the_place_of_all_parameters(runs):
    more = {"objective.teacher": "", "adapters.base": str(runs / "base")}
    config = align(runs, **more)
    model = run(config, runs / "lora")
    kept, adapters = split(model.params)
    base = load_model(runs / "base").params
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(base)):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(x) for x in jax.tree.leaves(adapters["blocks"]["lora"]["qkv"]["b"]))
    found = figures_of(runs / "lora")
    name = "unmasked_squared_distance_per_token"
    assert found[name] < found[f"base_{name}"]
    # The base that it is compared with is the base.
    whole = base_params(model.config, trained_params(model.config, model.params), base)
    states, zeros = NET.table(base)[TOKENS % 12], jnp.zeros(4)
    own = make_network(config_file.read_config(runs / "base"))
    same = [
        jax.jit(lambda net=net, p=p: denoise(net, p, states, zeros, zeros))()
        for net, p in ((model.net, whole), (own, base))
    ]
    np.testing.assert_allclose(*same, atol=1e-6)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"objective.teacher": ""}, "goes on from a masked diffusion model"),
        ({"objective.inputs": "progres"}, "did you mean 'progress'"),
        ({"model.dim": 64}, "teacher's sizes"),
        ({"data.task": "", "data.path": "elsewhere"}, "data.generated and config.data.path"),
        ({"data.generated": "nowhere"}, "holds no texts of a model"),
        ({"objective.time_conditioning": True}, "time_conditioning is True"),
    ],
)
def test_bad_alignments_are_refused(runs, tmp_path, values, message):
    with pytest.raises(UserError, match=message):
        run(align(runs, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
