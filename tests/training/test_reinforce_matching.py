"""Training beside a discriminator: continued runs, devices, exports, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flm_jax
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.distributed import sharding
from flm_jax.training.program import assemble
from helpers.runs import (
    assert_equal,
    changed,
    distilling,
    final_params,
    restored,
    run,
    tiny_config,
)


def reinforced(teacher, **values):
    config = distilling(tiny_config(), "reinforce_matching", teacher)
    config.objective.auxiliary_updates = 1
    config.objective.draws = 2
    with config.unlocked():
        return changed(config, values)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    config = tiny_config()
    config.train.steps = 2
    run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def uninterrupted(flow, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(reinforced(flow), workdir)
    return workdir


def test_a_continued_run_is_bit_equal_to_an_uninterrupted_one(flow, uninterrupted, tmp_path):
    """Both networks with their optimizers; the discriminator has one output, and has learnt."""
    config = reinforced(flow)
    config.train.steps = 5
    run(config, tmp_path / "run")
    config.train.steps = 8
    run(config, tmp_path / "run")
    states = [
        restored(reinforced(flow), flow, folder) for folder in (uninterrupted, tmp_path / "run")
    ]
    assert_equal(*states)
    judge = states[0].auxiliary.params
    assert judge["head"]["kernel"].shape == (16, 1) and judge["table"].shape == (1, 16)
    assert np.abs(judge["head"]["kernel"]).max() > 0
    assert (
        np.abs(
            judge["blocks"]["qkv"]["kernel"] - final_params(flow)["blocks"]["qkv"]["kernel"]
        ).max()
        > 0
    )


def test_the_run_is_a_flow_map_that_draws_its_tokens(flow, uninterrupted, tmp_path):
    """It samples by renoising, scores, and exports the student alone."""
    model = flm_jax.load(uninterrupted)
    assert model.kind == "flow map" and model.config["sampler"]["name"] == "renoising"
    assert len(model.sample(2, steps=2, seed=0).texts) == 2
    with pytest.raises(UserError, match="gamma"):
        model.sample(2, steps=2, gamma=0.5)
    model.save_pretrained(tmp_path / "folder")
    assert_equal(final_params(uninterrupted), final_params(tmp_path / "folder"))
    assert set(final_params(uninterrupted)) == set(final_params(flow)) | {"target_time"}


@pytest.mark.slow
@pytest.mark.parametrize("mesh, tile", [((8, 1, 1), 0), ((1, 8, 1), 2), ((2, 2, 2), 2)])
def test_one_device_equals_several(mesh, tile):
    """Both networks after 3 steps of 2 microbatches each, with clean contexts: within 2e-5."""
    values = {
        "model.loss_tile": tile,
        "model.length": 4,
        "objective.context": 0.5,
        "objective.auxiliary_updates": 2,
        "train.batch": 96,
        "train.microbatches": 2,
    }
    ends = []
    for shape, devices in ((1, 1, 1), 1), (mesh, 8):
        sizes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape))
        config = check(reinforced("x", **values, **sizes))
        config["model"]["vocab_size"] = 8
        place = sharding.make_mesh(sharding.MeshConfig(**config["mesh"]), jax.devices()[:devices])
        net = make_network(config | {"model": config["model"] | {"two_time": False}}, place)
        teacher = jax.jit(net.init)(jax.random.key(3))
        program = assemble(config, place, (net, teacher))
        state = program.initial_state(teacher)
        tokens = jax.random.randint(jax.random.key(4), (96, 4), 0, 8)
        batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
        batch = jax.device_put(batch, sharding.batch_sharding(place))
        for _ in range(3):
            state, metrics = program.train_step(state, teacher, batch)
        ends.append(jax.tree.map(np.asarray, (state.params, state.auxiliary.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *ends)
    assert float(metrics["grad_norm"]) > 1e-3


REFUSED = [
    ({"objective.teacher": ""}, "objective reinforce_matching needs a frozen flow"),
    ({"model.two_time": False}, "set config.model.two_time = True"),
    ({"objective.draws": 1}, "draws is 1; expected a number in"),
    ({"objective.teacher_weight": -1.0}, "teacher_weight is -1.0"),
    ({"objective.row_weighting": "kl"}, "has no 'row_weighting'"),
    ({"objective.auxiliary_lead": 8}, "auxiliary_lead is 8; expected 0 to 7"),
    ({"train.batch": 15}, "does not split into 2 updates"),
    ({"sampler.name": "flow_map"}, "reinforce_matching"),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=lambda value: str(value)[:60])
def test_refused(flow, tmp_path, values, message):
    """In one line, and without a workdir being left."""
    with pytest.raises(UserError, match=message):
        run(reinforced(flow, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
