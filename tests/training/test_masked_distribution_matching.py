"""Distribution matching of a masked flow as a run: starts, restarts, exports, devices, refusals."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flm_jax.build.export import save_model
from flm_jax.build.load import load_model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.distributed import sharding
from flm_jax.inference import engine
from flm_jax.models.lora import split
from flm_jax.profiling import flops, plan
from flm_jax.training import trainer
from flm_jax.training.program import assemble
from flm_jax.training.trainer import train_run
from helpers.adapted_runs import adapt, distil, leaves, run, tiny
from helpers.runs import assert_equal


def matching(flow, **values):
    more = {"objective.name": "masked_distribution_matching", "objective.auxiliary_updates": 1}
    return distil(flow, **(more | {"sampler.gamma": 1.0} | values))


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A masked flow, and the base that it adapts."""
    folder = tmp_path_factory.mktemp("matching")
    run(tiny(**{"train.steps": 2}), folder / "base")
    run(adapt(folder / "base", **{"train.steps": 2}), folder / "flow")
    return folder / "flow"


@pytest.fixture(scope="module")
def matched(flow, tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching") / "run"
    return folder, run(matching(flow), folder)


def train_state(folder, step):
    return ocp.StandardCheckpointHandler().restore(folder / "checkpoints" / str(step) / "train")


def program_of(config, devices=None):
    """(program, state at step 0, teacher's parameters, a batch) on some of the 8 devices."""
    config = check(config)
    config["model"]["vocab_size"] = 8
    mesh = sharding.make_mesh(sharding.MeshConfig(**config["mesh"]), jax.devices()[:devices])
    net = make_network(config | {"adapters": config["adapters"] | {"two_time": False}}, mesh)
    rules = sharding.tree_shardings(jax.eval_shape(net.init, jax.random.key(3)), mesh)
    teacher = jax.jit(net.init, out_shardings=rules)(jax.random.key(3))
    program = assemble(config, mesh, (net, teacher))
    rows = config["train"]["batch"]
    tokens = jax.random.randint(jax.random.key(4), (rows, config["model"]["length"]), 0, 8)
    batch = {"tokens": tokens, "mask": jnp.ones(tokens.shape, bool), "prompt": tokens == 7}
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    model = types.SimpleNamespace(params=teacher, times=None)
    state = program.initial_state(teacher)
    state = trainer._started(config, state, model, sharding.replicated(mesh))
    return program, state, teacher, batch


def test_both_networks_start_as_the_masked_flow():
    """Their adapters are the teacher's, and without guidance the auxiliary has no gap to it."""
    config = matching("x", **{"objective.context_guidance": 0.0, "objective.row_weighting": "kl"})
    program, state, teacher, batch = program_of(config)
    own = split(teacher)[1]
    for params in (state.params, state.ema_params, state.auxiliary.params):
        extra = params["blocks"].keys() - own["blocks"].keys()
        assert extra == {"target_time"}
        taken = params | {"blocks": {k: params["blocks"][k] for k in own["blocks"]}}
        assert_equal(taken, own)
    before = jax.tree.map(np.array, split(teacher)[0])
    state, metrics = program.train_step(state, teacher, batch)  # in which the learning rate is 0
    assert float(metrics["gap_deviations_per_token"]) < 1e-4
    assert float(metrics["student_deviations_per_token"]) > 1e-2
    state, metrics = program.train_step(state, teacher, batch)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, state.ema_params)
    assert max(leaves(moved)) > 0 and np.isfinite(leaves(metrics)).all()
    assert_equal(before, split(teacher)[0])
    _, guided, _, _ = program_of(matching("x"))
    program, state, teacher, batch = program_of(matching("x"))
    _, metrics = program.train_step(state, teacher, batch)
    assert float(metrics["gap_deviations_per_token"]) >= 0.0


def test_a_run_resumes_samples_and_is_exported(flow, matched, tmp_path):
    """Both networks and both optimizers to the bit; the auxiliary is saved, and never exported."""
    folder, model = matched
    half = matching(flow, **{"train.steps": 2})
    assert train_run(check(half), str(tmp_path / "run")) == 0
    run(matching(flow), tmp_path / "run")
    whole, parts = train_state(folder, 4), train_state(tmp_path / "run", 4)
    assert_equal(whole, parts)
    assert set(whole["auxiliary"]) == {"params", "opt_state"}
    apart = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), whole["auxiliary"]["params"], whole["params"]
    )
    assert max(leaves(apart)) > 0
    saved = ocp.StandardCheckpointHandler().metadata(folder / "checkpoints" / "4" / "ema").tree
    assert set(saved) == {"blocks", "lora"}
    assert set(saved["blocks"]) == {"lora", "modulation", "time", "target_time"}
    save_model(tmp_path / "exported", model)
    found = load_model(tmp_path / "exported")
    assert_equal(model.params, found.params)
    given = engine.given_tokens(model, "new", "", 4, 2)
    texts = [engine.draw(m, given, steps=2, num=8, seed=0) for m in (model, found)]
    np.testing.assert_array_equal(texts[0].tokens, texts[1].tokens)
    assert len({int(x) for x in texts[0].tokens[:, 0]}) == 1
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "train/grad_norm" in row][-1]
    assert last["train/auxiliary_nats_per_token"] > 0


def test_it_starts_from_a_map_of_the_same_flow(flow, matched, tmp_path):
    """The student alone; its auxiliary starts as the flow. Other starts are refused at once."""
    still = {"optim.lr": 1e-30, "train.steps": 1, "train.checkpoint_every": 1}
    config = matching(flow, **{"adapters.start": str(matched[0])} | still)
    run(config, tmp_path / "run")
    state = train_state(tmp_path / "run", 1)
    assert_equal(state["params"], split(matched[1].params)[1])
    own = split(load_model(flow).params)[1]
    beside = state["auxiliary"]["params"]
    assert_equal(beside | {"blocks": {k: beside["blocks"][k] for k in own["blocks"]}}, own)
    other = shutil.copytree(flow, tmp_path / "other")
    for base, start, message in (
        (flow, flow, "is a model of objective masked_flow; expected a flow map of"),
        (other, matched[0], "is a map of .*flow, config.adapters.base is .*other; expected"),
    ):
        with pytest.raises(UserError, match=message):
            run(matching(base, **{"adapters.start": str(start)}), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        (2, 2, 2),
    ],
)
def test_one_device_equals_several(mesh):
    """Both networks after 3 steps of 2 microbatches each: within 2e-5."""
    values = {"objective.whole": 0.5, "objective.from_noise": 0.5, "train.microbatches": 2}
    values |= {"objective.hide_special": True, "adapters.dropout": 0.0, "train.batch": 32}
    ends = []
    for shape, devices in ((1, 1, 1), 1), (mesh, 8):
        sizes = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), shape))
        program, state, teacher, batch = program_of(matching("x", **values, **sizes), devices)
        for _ in range(3):
            state, metrics = program.train_step(state, teacher, batch)
        ends.append(jax.tree.map(np.asarray, (state.params, state.auxiliary.params, metrics)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), *ends)


@pytest.mark.parametrize("steps", [0, 4])
def test_plans_count_what_runs(steps):
    """Operations of both networks and of the guided teacher: more than the least, not twice it."""
    config = matching("elsewhere", **{"model.dim": 64, "model.depth": 2})
    config = plan.resolve(check(config), vocab_size=256, batch=16)
    mesh = sharding.make_mesh(sharding.MeshConfig(**config["mesh"]))
    job = plan.sample_job(config, mesh, steps) if steps else plan.train_job(config, mesh)
    assert 1.0 <= flops.total_flops(flops.trace(job.program, *job.args)) / job.minimum_flops < 2.0


REFUSED = [
    ({"adapters.two_time": False}, "set config.adapters.two_time = True"),
    ({"flow.redraw": True}, "set config.flow.redraw = False"),
    ({"adapters.base": ""}, "objective masked_distribution_matching with no adapters"),
    ({"objective.auxiliary_updates": 2}, "batch 64 does not split into 3 updates"),
    ({"objective.auxiliary_lead": 4}, "auxiliary_lead is 4; expected 0 to 3"),
    ({"objective.from_noise": 1.5}, "from_noise is 1.5"),
    ({"objective.context_guidance": -1.0}, "config.objective.context_guidance is -1"),
    ({"objective.row_weighting": "kll"}, "did you mean 'kl'"),
    ({"objective.teacher_temperature": 0.0}, "teacher_temperature is 0.0"),
    ({"objective.teacher": "x"}, "has no 'teacher'"),
]


@pytest.mark.parametrize("values, message", REFUSED, ids=lambda value: str(value)[:50])
def test_refused(flow, tmp_path, values, message):
    """In one line, and without a workdir being left."""
    config = matching(flow)
    with config.unlocked():
        config.update_from_flattened_dict(values)
        for key, value in values.items():
            group, name = key.split(".")
            config[group][name] = value
    with pytest.raises(UserError, match=message):
        train_run(check(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_matching_needs_a_masked_flow(flow, matched, tmp_path):
    for folder in (flow.parent / "base", matched[0]):
        with pytest.raises(UserError, match="expected a llama of objective masked_flow"):
            train_run(check(matching(folder)), str(tmp_path / "run"))
