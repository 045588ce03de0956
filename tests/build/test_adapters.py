"""Adaptation of masked diffusion into masked flows: training, restarts, plans, exports."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from flm_jax.build.adapters import exported_tensors, trained_params
from flm_jax.build.export import save_model
from flm_jax.build.families.registry import make_objective
from flm_jax.build.flow import make_flow
from flm_jax.build.load import load_model, resolve_adapted
from flm_jax.build.model import abstract_params, make_network
from flm_jax.checkpoints.state import TrainState
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose, settings
from flm_jax.core.errors import UserError
from flm_jax.distributed import sharding
from flm_jax.inference import engine, task_problems
from flm_jax.models.lora import join, split
from flm_jax.profiling import flops, plan
from flm_jax.training import trainer
from flm_jax.training.schedule_log import read_schedule
from flm_jax.training.trainer import train_run
from helpers.adapted_runs import adapt, distil, leaves, run, tiny
from helpers.llada2 import MIXTURE


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge") / "base"
    return folder, run(tiny(), folder)


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge") / "adapted"
    return folder, run(adapt(base[0]), folder)


def test_adaptation_trains_and_saves_adapters_alone(base, adapted):
    folder, model = adapted
    kept, adapters = split(model.params)
    for a, b in zip(leaves(kept), leaves(base[1].params)):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(x).max() > 0 for x in leaves(adapters["blocks"]["modulation"]))
    saved = ocp.StandardCheckpointHandler().metadata(folder / "checkpoints" / "24" / "ema").tree
    assert set(saved) == {"blocks", "lora"}
    assert set(saved["blocks"]) == {"lora", "modulation", "time"}
    assert [row["step"] for row in read_schedule(folder)][-1] == 24
    given = engine.given_tokens(model, "", "", 4, 2)
    assert engine.draw(model, given, steps=4, num=8, seed=0).tokens.shape == (8, 2)


def test_exported_adapters_keep_their_names(adapted):
    model = adapted[1]
    state = exported_tensors(model.config, model.params)
    kinds = ("lora_a", "lora_b", "time_mlp", "adaln_modulation")
    assert all(any(kind in name for kind in kinds) for name in state)
    adapters = split(model.params)[1]
    assert sum(x.size for x in state.values()) == sum(x.size for x in leaves(adapters))


def test_adapters_of_another_form_are_exported_merged(base, tmp_path):
    """Those that time reaches through the last norm too; their time conditioning stands beside."""
    more = {"adapters.final_norm": True, "adapters.gates": False, "train.steps": 12}
    model, plain = run(adapt(base[0], **more), tmp_path / "run"), base[1]
    state, plain = (exported_tensors(m.config, m.params) for m in (model, plain))
    own = {name for name in state if name.startswith("adapters.")}
    assert set(state) - own == set(plain) and own and not any("lora" in name for name in own)
    assert any(np.abs(state[name] - plain[name]).max() > 0 for name in plain)


def test_adapters_of_another_objective_are_exported_merged(adapted):
    model = adapted[1]
    aligned = base_config(model="llama", objective="alignment").to_dict()
    aligned |= {group: model.config[group] for group in ("model", "adapters")}
    names = exported_tensors(aligned, model.params).keys()
    assert "transformer.h.0.attn.attn.weight" in names and not any("lora" in n for n in names)


@pytest.mark.parametrize("time", ["none", "progress"])
def test_adapters_of_a_mixture_are_exported_merged(time):
    values = {
        "model.qk_norm": True,
        "model.mask_id": 3,
        "model.vocab_size": 12,
        "model.depth": 2,
        "model.experts": vars(MIXTURE),
        "adapters.time": time,
        "adapters.head_rank": 0,
        "adapters.base": "elsewhere",
    }
    config = check(tiny(**{"objective.name": "alignment"} | values))
    net = make_network(config)
    ones = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), abstract_params(net))
    state = exported_tensors(config, ones)
    own = {name for name in state if name.startswith("adapters.")}
    assert bool(own) == (time != "none") and not any("lora" in name for name in state)
    # Of B A all entries are rank x 0.01, times alpha / rank.
    shift = 4 * 0.01 * config["adapters"]["alpha"] / 4
    for name in ("attention.dense", "mlp.shared_experts.down_proj", "mlp.experts.1.up_proj"):
        more = 0.0 if ".experts." in name else shift
        np.testing.assert_allclose(state[f"model.layers.1.{name}.weight"], 0.1 + more, rtol=1e-5)


def test_a_restart_between_refits_changes_no_bit(base, adapted, tmp_path):
    config = adapt(base[0], **{"train.steps": 12})
    assert train_run(check(config), str(tmp_path / "run")) == 0
    run(adapt(base[0]), tmp_path / "run")
    ends = [folder / "checkpoints" / "24" / "train" for folder in (adapted[0], tmp_path / "run")]
    whole, again = (ocp.StandardCheckpointHandler().restore(end) for end in ends)
    assert float(whole["tracked"]["examples"]) == 24 * 64
    for a, b in zip(leaves(whole), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_adapters_may_start_from_others(base, adapted):
    folder, model = adapted
    config = check(adapt(base[0], **{"adapters.start": str(folder)}))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    mine = split(model.params)[1]
    state = trainer._started(config, TrainState(0, mine, mine, (), 0), None, place)
    for a, b, c in zip(leaves(state.params), leaves(state.ema_params), leaves(mine)):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c)
    bias = lambda params: params["blocks"]["time"]["out"]["bias"]
    assert bias(state.params) is not bias(state.ema_params)


def test_a_base_may_be_trained_with_its_adapters(base, adapted, tmp_path):
    """All but the embeddings, in float32; it is saved, started from and exported with them."""
    more = {"adapters.base_lr": 1e-3, "adapters.start": str(adapted[0])}
    config = adapt(base[0], **more)
    model = run(config, tmp_path / "run")
    kept, adapters = split(model.params)
    before = split(adapted[1].params)
    for name in ("table", "anchor"):
        np.testing.assert_array_equal(kept[name], before[0][name])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), kept, before[0])
    assert min(leaves({k: v for k, v in moved.items() if k not in ("table", "anchor")})) > 0
    assert max(leaves(moved["blocks"]["q"])) < 24 * 1e-3  # the base's own rate, not 3e-3
    assert any((a != b).any() for a, b in zip(leaves(adapters), leaves(before[1])))
    end = tmp_path / "run" / "checkpoints" / "24"
    saved = ocp.StandardCheckpointHandler().metadata(end / "ema").tree
    assert set(saved) == {"blocks", "lora", "norm", "head"}
    names = set(exported_tensors(model.config, model.params))
    assert {"model.lm_head.weight", "model.transformer.wte.weight"} < names
    # A restart in the middle changes nothing.
    half = adapt(base[0], **more, **{"train.steps": 12})
    assert train_run(check(half), str(tmp_path / "again")) == 0
    run(config, tmp_path / "again")
    ends = [tmp_path / name / "checkpoints" / "24" / "train" for name in ("run", "again")]
    whole, again = (ocp.StandardCheckpointHandler().restore(path) for path in ends)
    for a, b in zip(leaves(whole), leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    # A run that trains its base starts from one that did, another does not.
    more = {"adapters.base_lr": 1e-4, "adapters.start": str(tmp_path / "run"), "train.steps": 1}
    more |= {"optim.lr": 1e-9, "optim.ema_decay": 0.0, "adapters.base_lr": 1e-9}
    third = run(adapt(base[0], **more), tmp_path / "third")
    for a, b in zip(leaves(third.params), leaves(model.params)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    config = adapt(base[0], **{"adapters.start": str(tmp_path / "run")})
    with pytest.raises(UserError, match="trained its base with its adapters; expected"):
        train_run(check(config), str(tmp_path / "refused"))


def test_the_law_of_gamma_comes_with_the_adapters(base, tmp_path):
    """The curve alone, into bins of another number."""
    law = {"learnt": "empirical", "refit_every": 4, "least_cell": 0.0, "least_examples": 128.0}
    law = {f"flow.law.{key}": value for key, value in (law | {"bins": 8}).items()}
    model = run(adapt(base[0], **law, **{"train.steps": 8}), tmp_path / "first")
    assert model.times.ready == 1.0 and np.ptp(np.diff(model.times.knots)) > 0.01
    more = {"adapters.start": str(tmp_path / "first"), "train.steps": 2}
    again = run(adapt(base[0], **more), tmp_path / "second").times
    np.testing.assert_array_equal(again.knots, model.times.knots)
    assert again.ready == 1.0 and again.examples == 2 * 64 and again.cells.shape[1] == 128


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("made", [adapt, distil])
def test_plans_count_what_runs(made, steps):
    """Operations of a llama with adapters: more than the least, which leaves LoRA out."""
    config = made("elsewhere", **{"model.dim": 64, "model.depth": 2})
    config = plan.resolve(check(config), vocab_size=256, batch=8)
    mesh = sharding.make_mesh(settings(config, "mesh"))
    job = plan.sample_job(config, mesh, steps) if steps else plan.train_job(config, mesh)
    assert 1.0 <= flops.total_flops(flops.trace(job.program, *job.args)) / job.minimum_flops < 2.0


@pytest.mark.parametrize(
    "values, message",
    [
        ({"adapters.base": ""}, "by masked_flow with config.adapters.base set"),
        ({"model.length": 3}, "phrases2 has sequences of 2 tokens"),
        ({"flow.law.learnt": "logistics"}, "did you mean 'logistic'"),
        ({"flow.law.uniform": 0.9}, "more than 1 together"),
        ({"adapters.rank": 0}, "config.adapters.rank is 0"),
        ({"adapters.base_lr": -1.0}, "config.adapters.base_lr is -1"),
        ({"adapters.time": "none"}, "expected gamma, t or progress: a masked flow"),
        ({"data.task": "arithmetic1", "model.length": 6}, "was trained for 2 tokens"),
    ],
)
def test_bad_adaptations_are_refused(base, tmp_path, values, message):
    config = adapt(base[0])
    config.update_from_flattened_dict(values)
    with pytest.raises(UserError, match=message):
        trainer.train_run(check(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_model_with_adapters_is_no_base(adapted, tmp_path):
    """A configuration that names its own folder, or two that name each other, end in one line."""
    folder = shutil.copytree(adapted[0], tmp_path / "run")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["adapters"]["base"] = str(folder)
    file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="adapters.base .*run is itself a model with adapters"):
        load_model(folder)


def test_alignment_keeps_its_base(base, tmp_path):
    config = tiny(**{"adapters.base": str(base[0]), "adapters.base_lr": 1e-5})
    choose(config, objective="alignment")
    with pytest.raises(UserError, match="config.adapters.base_lr is 1e-05; expected 0 by"):
        trainer.train_run(check(config), str(tmp_path / "run"))


def test_a_trained_base_stays_float32_where_its_file_was_not(base, tmp_path):
    """Small steps survive in a workdir and an exported folder; samples of both are equal."""
    folder = tmp_path / "base"
    config = tiny(**{"model.param_dtype": "bfloat16", "train.steps": 1})
    run(config, folder)
    small = {"adapters.base_lr": 1e-6, "train.steps": 3, "optim.ema_decay": 0.0}
    model = run(adapt(folder, **small), tmp_path / "run")
    own, before = split(model.params)[0], load_model(folder).params
    assert own["table"].dtype == before["head"]["kernel"].dtype == jnp.bfloat16
    step = own["head"]["kernel"] - before["head"]["kernel"].astype(jnp.float32)
    assert 0 < np.abs(step).max() < 1e-5
    save_model(tmp_path / "exported", model)
    again = load_model(tmp_path / "exported")
    for a, b in zip(leaves(model.params), leaves(again.params), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    state = ocp.StandardCheckpointHandler().restore(tmp_path / "run" / "checkpoints" / "3" / "ema")
    held = model._replace(params=join(before, jax.device_get(state)))
    given = engine.given_tokens(model, "", "", 4, 2)
    texts = [engine.draw(m, given, steps=4, num=8, seed=0).tokens for m in (model, again, held)]
    np.testing.assert_array_equal(texts[0], texts[1])
    np.testing.assert_array_equal(texts[0], texts[2])


def test_plans_count_a_base_that_is_trained():
    """A copy of it in float32, its average and two moments; the backward pass of its weights."""
    mesh = sharding.make_mesh(settings(check(adapt("elsewhere")), "mesh"))
    found = []
    for rate in (0.0, 1e-5):
        config = adapt("elsewhere", **{"adapters.base_lr": rate, "model.dim": 64})
        config = plan.resolve(check(config), vocab_size=256, batch=8)
        job = plan.train_job(config, mesh)
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(job.args))
        found.append((size, flops.total_flops(flops.trace(job.program, *job.args))))
        assert 1.0 <= found[-1][1] / job.minimum_flops < 2.0
        kept = {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(job.args[1])}
        assert ("head" in kept) == (rate == 0.0)
    matrices = settings(config, "model").matrices.values()
    base = 256 * 64 + sum(inputs * outputs for inputs, outputs in matrices)
    assert found[1][0] - found[0][0] >= 3 * 4 * base
    assert found[1][1] > found[0][1]


@pytest.fixture(scope="module")
def mapped(adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge") / "map"
    return folder, run(distil(adapted[0]), folder)


def test_a_flow_map_starts_as_its_masked_flow(adapted):
    """To the bit, whatever the second time, and with the adapters' form and the law of its flow."""
    teacher = adapted[1]
    found = resolve_adapted(check(distil(adapted[0])), teacher.config, teacher.tokenizer)
    assert found["flow"] == teacher.config["flow"] | {"redraw": False}
    assert found["adapters"]["rank"] == teacher.config["adapters"]["rank"]
    net = make_network(found)
    fresh = trained_params(found, net.init(jax.random.key(1)))
    state = trainer._started(found, TrainState(0, fresh, fresh, (), 0), teacher, None)
    params = join(teacher.params, state.params)
    y = jax.random.normal(jax.random.key(2), (4, 2, 32))
    s, t = jnp.linspace(0.1, 0.5, 4), jnp.linspace(0.9, 1.0, 4)
    want = teacher.net.features(teacher.params, y, s, s)
    np.testing.assert_array_equal(net.features(params, y, s, t), want)
    wrong = {"objective": found["objective"] | {"route": "endpoint"}}
    wrong |= {"model": found["model"] | {"attention": "cudnn"}}
    with pytest.raises(UserError, match="endpoint differentiates forward"):
        make_objective(found | wrong, net, make_flow(found, 4), teacher.net)
    # The second time is read: its map alone is zero at first.
    params["blocks"]["target_time"]["out"]["bias"] += 0.1
    assert np.abs(net.features(params, y, s, t) - want).max() > 1e-4


def test_a_flow_map_trains_resumes_and_is_exported(adapted, mapped, tmp_path):
    """Adapters alone are saved; a restart changes no bit, an exported folder no sample."""
    folder, model = mapped
    saved = ocp.StandardCheckpointHandler().metadata(folder / "checkpoints" / "4" / "ema").tree
    assert set(saved) == {"blocks", "lora"}
    assert set(saved["blocks"]) == {"lora", "modulation", "time", "target_time"}
    for a, b in zip(leaves(split(model.params)[0]), leaves(split(adapted[1].params)[0])):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.times.knots, adapted[1].times.knots)
    half = distil(adapted[0], **{"train.steps": 2})
    assert train_run(check(half), str(tmp_path / "run")) == 0
    again = run(distil(adapted[0]), tmp_path / "run")
    save_model(tmp_path / "exported", model)
    found = load_model(tmp_path / "exported")
    for other in (again, found):
        for a, b in zip(leaves(model.params), leaves(other.params), strict=True):
            np.testing.assert_array_equal(a, b)
    given = engine.given_tokens(model, "new", "", 4, 2)
    texts = [engine.draw(m, given, steps=2, num=8, seed=0) for m in (model, found)]
    np.testing.assert_array_equal(texts[0].tokens, texts[1].tokens)
    assert len(texts[0].steps_tokens) == 2 and len({int(x) for x in texts[0].tokens[:, 0]}) == 1
    state = exported_tensors(model.config, model.params)
    assert any(name.startswith("adapters.blocks.target_time") for name in state)


def test_a_flow_map_with_its_base_keeps_the_teacher(adapted, tmp_path):
    """A base that is trained: the teacher is asked as it was, and the route endpoint derives."""
    more = {"adapters.base_lr": 1e-3, "objective.route": "endpoint", "train.steps": 2}
    model = run(distil(adapted[0], **more), tmp_path / "run")
    before = adapted[1].params
    assert (model.params["head"]["kernel"] != before["head"]["kernel"]).any()
    np.testing.assert_array_equal(model.params["table"], before["table"])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"adapters.two_time": False}, "set config.adapters.two_time = True"),
        ({"flow.redraw": True}, "set config.flow.redraw = False"),
        ({"adapters.time": "none"}, "adapters of a flow map are told two times"),
        ({"objective.diagonal": 0.4}, "divisible by 5, got 64"),
        ({"objective.context_guidance": -1.0}, "config.objective.context_guidance is -1"),
        ({"objective.route": "lagrangian"}, "unknown config.objective.route 'lagrangian'"),
        ({"adapters.base": ""}, "objective masked_flow_map with no adapters"),
    ],
)
def test_bad_flow_maps_are_refused(adapted, tmp_path, values, message):
    config = distil(adapted[0])
    config.update_from_flattened_dict(values)
    with pytest.raises(UserError, match=message):
        train_run(check(config), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_flow_map_needs_a_masked_flow(base, adapted, mapped, tmp_path):
    for folder in (base[0], mapped[0]):
        with pytest.raises(UserError, match="expected a llama of objective masked_flow"):
            train_run(check(distil(folder)), str(tmp_path / "run"))
    with pytest.raises(UserError, match="expected a llama of objective masked_diffusion"):
        train_run(check(adapt(adapted[0])), str(tmp_path / "run"))


def test_problems_need_a_task(adapted):
    with pytest.raises(UserError, match="trained on phrases2, which has no problems"):
        task_problems.task_of(adapted[1])
