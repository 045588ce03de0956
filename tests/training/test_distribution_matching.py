"""Training of two networks in turn: continued runs, devices, starts, exports, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flm_jax
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
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


def matching_config(teacher, **values):
    config = distilling(tiny_config(), "distribution_matching", teacher)
    config.objective.auxiliary_updates = 1
    with config.unlocked():
        return changed(config, values)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("flow") / "run"
    run(tiny_config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def uninterrupted(flow, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(matching_config(flow), workdir)
    return workdir


def program_of(config, devices=None):
    """(program, state at step 0, teacher's parameters, a batch) on some of the 8 devices."""
    config = check(config)
    config["model"]["vocab_size"] = 8
    sizes = config["mesh"]
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes), jax.devices()[:devices])
    flat = config | {"model": config["model"] | {"two_time": False}}
    net = make_network(flat, mesh)
    teacher = jax.jit(net.init)(jax.random.key(3))
    program = assemble(config, mesh, (net, teacher))
    rows = config["train"]["batch"]
    tokens = jax.random.randint(jax.random.key(4), (rows, config["model"]["length"]), 0, 8)
    batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool)}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    return program, program.initial_state(teacher), teacher, batch


def test_a_continued_run_is_bit_equal_to_an_uninterrupted_one(flow, uninterrupted, tmp_path):
    """Both networks, both optimizers, and what is reported."""
    config = matching_config(flow)
    config.train.steps = 5
    run(config, tmp_path / "run")
    config.train.steps = 8
    run(config, tmp_path / "run")
    states = [
        restored(matching_config(flow), flow, folder)
        for folder in (uninterrupted, tmp_path / "run")
    ]
    assert_equal(*states)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), states[0].auxiliary.params, states[0].params
    )
    assert moved["blocks"]["qkv"]["kernel"] > 0
    read = lambda folder: (folder / "metrics.jsonl").read_text().splitlines()
    last = lambda folder: [r for r in map(json.loads, read(folder)) if "train/grad_norm" in r][-1]
    whole, parts = last(uninterrupted), last(tmp_path / "run")
    for name in ("auxiliary_nats_per_token", "gap_deviations_per_token"):
        assert whole[f"train/{name}"] == parts[f"train/{name}"] > 0


def test_the_run_is_a_flow_map_everywhere(flow, uninterrupted, tmp_path):
    """It samples, with and without fresh noise, scores, and exports the student alone."""
    model = flm_jax.load(uninterrupted)
    assert model.kind == "flow map"
    for gamma in (0.0, 1.0):
        assert len(model.sample(2, steps=2, seed=0, gamma=gamma).texts) == 2
    model.save_pretrained(tmp_path / "folder")
    exported = flm_jax.load(tmp_path / "folder")
    np.testing.assert_array_equal(
        model.sample(8, steps=1, seed=0).tokens, exported.sample(8, steps=1, seed=0).tokens
    )
    assert_equal(final_params(uninterrupted), final_params(tmp_path / "folder"))
    names = set(final_params(uninterrupted))
    assert names == set(final_params(flow)) | {"target_time"}


def test_it_starts_from_a_flow_or_from_a_flow_map(flow, uninterrupted, tmp_path):
    """At a learning rate of 0 the student is what it started from, the auxiliary the teacher."""
    still = {"optim.lr": 1e-30, "train.steps": 1}
    for start in ("", flow, uninterrupted):
        workdir = tmp_path / (start and start.parent.name or "teacher")
        run(matching_config(flow, **{"objective.start": str(start)}, **still), workdir)
        found, teacher = restored(matching_config(flow), flow, workdir), final_params(flow)
        want = final_params(start or flow)
        assert ("target_time" in want) == (start == uninterrupted)
        for own, taken in ((found.params, want), (found.auxiliary.params, teacher)):
            assert_equal({name: own[name] for name in taken}, taken)


def test_a_colder_teacher_is_another_one():
    """The auxiliary starts as the teacher, so that a gap is there at once where it is colder."""

    def first_gap(temperature):
        values = {"objective.teacher_temperature": temperature, "mesh.fsdp": 1}
        program, state, teacher, batch = program_of(matching_config("x", **values), 1)
        return float(program.train_step(state, teacher, batch)[1]["gap_deviations_per_token"])

    warm, cold = first_gap(1.0), first_gap(0.5)
    assert cold > 10 * warm


def test_the_first_steps_train_the_auxiliary_alone():
    config = matching_config("x", **{"objective.auxiliary_lead": 3, "optim.warmup_steps": 0})
    program, state, teacher, batch = program_of(config)
    first = jax.tree.map(np.array, (state.params, state.ema_params, state.opt_state))
    before = np.array(state.auxiliary.params["norm"]["scale"])
    for _ in range(3):
        state, metrics = program.train_step(state, teacher, batch)
    assert int(metrics["skipped_in_a_row"]) == 0
    assert_equal(first, (state.params, state.ema_params, state.opt_state))
    assert not np.array_equal(before, state.auxiliary.params["norm"]["scale"])
    state, _ = program.train_step(state, teacher, batch)
    assert not np.array_equal(first[0]["norm"]["scale"], state.params["norm"]["scale"])


@pytest.mark.parametrize("posterior", [False, True])
def test_the_auxiliary_starts_as_the_teacher(posterior):
    """Before its first update there is no gap; posteriors are read with the teacher's table."""
    values = {"model.posterior_input": posterior, "train.batch": 32}
    program, state, teacher, batch = program_of(matching_config("x", **values))
    _, metrics = program.train_step(state, teacher, batch)  # in which the learning rate is 0
    assert float(metrics["gap_deviations_per_token"]) < 1e-4
    assert float(metrics["student_deviations_per_token"]) > 0.1


@pytest.mark.parametrize(
    "mesh, tile",
    [
        pytest.param((8, 1, 1), 0, marks=pytest.mark.slow),
        pytest.param((1, 8, 1), 2, marks=pytest.mark.slow),
        ((2, 2, 2), 2),
    ],
)
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
        config = matching_config("x", **values, **sizes)
        program, state, teacher, batch = program_of(config, devices)
        for _ in range(3):
            state, metrics = program.train_step(state, teacher, batch)
        ends.append(jax.tree.map(np.asarray, (state.params, state.auxiliary.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *ends)
    kernel = state.auxiliary.params["blocks"]["mlp_in"]["kernel"].sharding
    assert kernel == state.params["blocks"]["mlp_in"]["kernel"].sharding


def test_a_non_finite_update_changes_neither_network():
    config = matching_config("x", **{"optim.warmup_steps": 0})
    program, state, teacher, batch = program_of(config)
    state, _ = program.train_step(state, teacher, batch)
    before = jax.tree.map(np.array, state)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), teacher)
    state, metrics = program.train_step(state, bad, batch)
    assert int(metrics["skipped_in_a_row"]) == 1
    assert_equal(before._replace(step=0, skipped=0), state._replace(step=0, skipped=0))


REFUSED = [
    ({"objective.teacher": ""}, "needs a frozen flow"),
    ({"model.two_time": False}, "set config.model.two_time = True"),
    ({"objective.auxiliary_updates": 0}, "auxiliary_updates is 0; expected a number in"),
    ({"objective.auxiliary_updates": 2}, "does not split into 3 updates"),
    ({"train.microbatches": 2}, "does not split over 32"),
    ({"objective.auxiliary_lr": -1.0}, "auxiliary_lr is -1.0"),
    ({"objective.auxiliary_lead": 8}, "auxiliary_lead is 8; expected 0 to 7"),
    ({"objective.from_noise": 1.5}, "from_noise is 1.5"),
    ({"objective.row_weighting": "kll"}, "did you mean 'kl'"),
    ({"objective.noise": "onehot"}, "that is a key of config.flow"),
    ({"objective.weighting": "learned"}, "has no 'weighting'"),
    ({"objective.context": 0.5}, "need a teacher that was trained with clean context"),
    ({"model.self_conditioning": True}, "model.self_conditioning is for objective denoising"),
    ({"model.dim": 32}, "the student must have the teacher's sizes"),
    ({"data.task": "phrases4"}, "vocab_size: teacher 4, student 8"),
    ({"flow.clock": "identity"}, "the teacher 'decoding'"),
    ({"objective.name": "semigroup", "objective.start": "x"}, "semigroup has no 'start'"),
    ({"objective.start": "nothing"}, "nothing"),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=lambda value: str(value)[:60])
def test_refused(flow, tmp_path, values, message):
    """In one line, and without a workdir being left."""
    with pytest.raises(UserError, match=message):
        run(matching_config(flow, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_models_are_refused(flow, uninterrupted, tmp_path):
    masked = tiny_config()
    choose(masked, objective="masked_diffusion")
    masked.train.steps = 1
    run(masked, tmp_path / "masked")
    other = str(tmp_path / "masked")
    for values, message in (
        ({"objective.teacher": str(uninterrupted)}, "teacher is a flow map"),
        ({"objective.teacher": other}, "expected a flow"),
        ({"objective.start": other}, "start .*is a model of objective masked"),
    ):
        with pytest.raises(UserError, match=message):
            run(matching_config(flow, **values), tmp_path / "run")
    assert not (tmp_path / "run").exists()
