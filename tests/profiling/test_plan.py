"""Planning: operations by hand, memory found, the largest batch, clear refusals."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from flm_jax import compile
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose, defaults
from flm_jax.core.errors import UserError
from flm_jax.distributed.sharding import MeshConfig, make_mesh
from flm_jax.profiling import aot, topologies
from flm_jax.profiling import plan as profiling_plan
from flm_jax.profiling.flops import count_flops, trace


def tiny_config(vocab_size=20, **objective):
    config = base_config()
    config.model.vocab_size = vocab_size
    config.model.length = 8
    config.model.dim = 16
    config.model.depth = 2
    config.model.heads = 2
    config.model.cond_dim = 12
    config.model.scan_blocks = True
    choose(config, objective=objective.pop("name", "denoising"))
    config.objective.update(objective)
    config.model.two_time = config.objective.name != "denoising"
    config.train.batch = 16
    config.mesh.data, config.mesh.fsdp = 2, 4
    return profiling_plan.resolve(check(config))


def test_a_train_step_takes_the_operations_worked_out_by_hand():
    """Exactly. V <= 2 D, so that the noise is one product; every other term is a layer's."""
    config = tiny_config()
    config["mesh"] |= {"data": 1, "fsdp": 1}
    job = profiling_plan.train_job(config, make_mesh(MeshConfig(), jax.devices()[:1]))
    b, length, d, v, depth, c, r = 16, 8, 16, 20, 2, 12, 4
    tokens = b * length
    once = tokens * v * d  # noise @ table; noise has no gradient
    once += b * 256 * c  # features of time have none
    both = b * c * c + b * c * 2 * d + tokens * d * v
    both += depth * (b * c * 6 * d + tokens * (4 + 2 * r) * d**2 + 2 * b * length**2 * d)
    assert dict(count_flops(trace(job.program, *job.args))) == {"dot": 2 * (2 * once + 3 * both)}
    weights = depth * (4 + 2 * r) * d**2 + d * v
    assert job.minimum_flops == 3 * tokens * (2 * weights + 4 * length * d * depth)


def test_both_stages_of_a_two_stage_distillation_are_planned():
    """Least operations: gradient 3 and 4 other calls; or 3 and 2, of flow and residual."""
    for name, calls, products, more in (
        ("residual", 7, 2, {}),
        ("merge", 5, 0, {"residual": "elsewhere"}),
    ):
        config = tiny_config(name=name, teacher="somewhere", **more)
        config["eval"] |= {"batches": 0, "samples": 0}
        config["mesh"] |= {"data": 1, "fsdp": 1}
        forward, product = profiling_plan.forward_minimum(config, 16), 2 * 16 * 8 * 16 * 20
        least = profiling_plan.train_minimum(config)
        assert least == calls * forward + products * product
        job = profiling_plan.train_job(config, make_mesh(MeshConfig(), jax.devices()[:1]))
        assert sum(count_flops(trace(job.program, *job.args)).values()) > least


def test_least_operations_of_distillation_and_sampling():
    """8 of 16 rows diagonal: student's gradient 3, teacher 1/2, target 2 x 1/2, of a forward."""
    config = tiny_config(name="semigroup", teacher="somewhere")
    forward, product = profiling_plan.forward_minimum(config, 16), 2 * 16 * 8 * 16 * 20
    assert profiling_plan.train_minimum(config) == 4.5 * forward + product // 2
    assert profiling_plan.sample_minimum(config, 3) == 3 * forward + 2 * product
    alone = tiny_config(name="semigroup")
    assert profiling_plan.train_minimum(alone) == 4 * forward + product // 2


def test_least_operations_of_two_networks_in_turn():
    """Of 16 rows 4 are the student's: 3 for both gradients; 12 answers, and 2 calls on the 4."""
    matching = {"name": "distribution_matching", "teacher": "somewhere", "auxiliary_updates": 3}
    config = tiny_config(**matching)
    forward, product = profiling_plan.forward_minimum(config, 16), 2 * 16 * 8 * 16 * 20
    assert profiling_plan.train_minimum(config) == 4.25 * forward + 1.5 * product
    # The student's gradient on 4 rows, its texts on 12, the teacher on 4; without a head the
    # discriminator's gradient on two texts of 12 rows, and its calls on 4 texts of 4.
    reinforced = tiny_config(**matching | {"name": "reinforce_matching"})
    headless = profiling_plan.forward_minimum(config, 16, head=False)
    least = 1.75 * forward + (2 * 3 * 12 + 4 * 4) * headless // 16
    assert headless < forward and profiling_plan.train_minimum(reinforced) == least
    job = profiling_plan.train_job(reinforced, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert sum(count_flops(trace(job.program, *job.args)).values()) > least


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=2, fsdp=4))


MATCHING = {"name": "distribution_matching", "auxiliary_updates": 1}
OBJECTIVES = ({}, {"name": "semigroup", "teacher": "none"}, MATCHING | {"teacher": "none"})


@pytest.mark.parametrize("objective", OBJECTIVES, ids=["flm", "fmlm", "matching"])
def test_a_train_step_is_planned(mesh, objective):
    """Arguments are those of the real state: parameters, average, two moments, teacher; and of the
    network that is trained beside the model, parameters and moments."""
    config = tiny_config(vocab_size=40, **objective)
    texts = []
    result = profiling_plan.plan(config, mesh, 0, keep=texts.append)
    json.dumps(result)
    assert result["program"] == "train step" and result["devices"] == 8 and result["fits"]
    assert result["rows_per_device"] == 2
    assert result["flops"]["total"] > result["flops"]["minimum"] > 0
    kinds = result["collectives"]
    assert kinds["all-gather"]["bytes"] > 0 and kinds["all-reduce"]["bytes"] > 0
    assert "all-gather" in texts[0]
    job = profiling_plan.train_job(config, mesh)
    shards = [x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(job.args)]
    held = sum(4 * int(np.prod(s)) for s in shards)
    memory = result["memory_bytes"]
    assert 0.9 * held < memory["arguments"] < 1.1 * held
    assert memory["peak"] >= memory["arguments"] + memory["temporaries"] > memory["arguments"]
    assert any("times the least possible" in line for line in profiling_plan.lines(result))


def test_a_sampler_is_planned(mesh):
    result = profiling_plan.plan(tiny_config(vocab_size=40), mesh, 1, sample_steps=3)
    assert result["program"] == "sampler" and not result["fits"]
    assert "DOES NOT FIT" in profiling_plan.lines(result)[1]
    job = profiling_plan.sample_job(tiny_config(vocab_size=40), mesh, 6)
    ratio = count_flops(trace(job.program, *job.args))["dot"] / job.minimum_flops
    assert 1.0 < ratio < result["flops"]["ratio"], "the noise is drawn once"


def test_a_rollout_of_a_policy_is_planned(mesh):
    """It keeps what it saw, features, draws and their densities; its loop is counted once."""
    config = base_config(model="llama", objective="alignment", sampler="x_prediction")
    config.model.update({"vocab_size": 20, "length": 8, "dim": 16, "depth": 2, "heads": 2})
    config.model.update({"attention_softcap": 0.0, "logit_softcap": 0.0, "scan_blocks": True})
    config.objective.teacher, config.train.batch = "somewhere", 16
    config.mesh.data, config.mesh.fsdp = 2, 4
    config = profiling_plan.resolve(check(config))
    found = {
        rollout: profiling_plan.plan(config, mesh, 0, sample_steps=64, rollout=rollout)
        for rollout in (False, True)
    }
    assert [found[rollout]["program"] for rollout in (False, True)] == ["sampler", "rollout"]
    assert all(1.0 <= one["flops"]["ratio"] < 2.0 for one in found.values())
    plain, kept = (one["memory_bytes"]["peak"] for one in found.values())
    # Calls, rows of a device, tokens, numbers of 4 bytes.
    assert kept - plain > 0.5 * 64 * 2 * 8 * (8 + 2) * 4
    config["sampler"] = defaults("sampler", "confidence")
    with pytest.raises(UserError, match="got --rollout for config.sampler.name 'confidence'"):
        profiling_plan.plan(config, mesh, 0, sample_steps=2, rollout=True)


def test_a_batch_of_which_some_devices_hold_more_is_refused(mesh):
    config = tiny_config(name="semigroup")
    config["train"]["batch"] = 24
    with pytest.raises(UserError, match="batch of 24 .* 8 devices .* multiples of 2.*of 16"):
        profiling_plan.plan(config, mesh, 0)


def test_without_a_vocabulary_there_is_no_plan():
    with pytest.raises(UserError, match="give --vocab_size"):
        profiling_plan.resolve(check(base_config()))
    assert profiling_plan.resolve(check(base_config()), 7, 8)["model"]["vocab_size"] == 7


@pytest.mark.parametrize(
    "per_row, start, unit, expected",
    [(9, 1, 1, 100), (90, 64, 1, 10), (9, 8, 6, 96), (2000, 4, 1, 0)],
)
def test_largest_batch(per_row, start, unit, expected):
    """The largest that fits to 1/16 of itself, in at most five tries of a linear memory."""
    calls = []

    def measure(rows):
        calls.append(rows)
        return aot.Memory(peak=100 + per_row * rows, limit=1000)

    found = aot.largest_batch(measure, start, unit, tries=5)
    assert expected - max(unit, expected // 16) <= found.rows <= expected
    assert found.rows % unit == 0 and len(calls) == len(set(calls)) <= 5
    assert expected < found.too_many <= found.rows + max(unit, expected // 16)


def test_what_a_refused_program_needs_is_read():
    used = "RESOURCE_EXHAUSTED: XLA:TPU compile ... Used 16.50G of 15.75G hbm. Exceeded by 768M."
    memory = aot.wanted(used, 7)
    assert (memory.peak, memory.limit) == (int(16.5 * 2**30), int(15.75 * 2**30))
    other = "RESOURCE_EXHAUSTED: for HLO temporaries (512.0M) exceeds available HBM (15.75G)."
    assert aot.wanted(other, 7).peak == 2**29
    assert not aot.wanted("RESOURCE_EXHAUSTED: something else", 7).fits
    assert aot.wanted("INTERNAL: a defect", 7) is None


def test_topologies():
    assert topologies.parse("v5e:4x4") == topologies.Topology("v5e", (4, 4))
    assert topologies.devices(topologies.parse("cpu:4")) == jax.devices()[:4]
    with pytest.raises(UserError, match="got topology 'v5e-16'; expected .* v5e:4x4"):
        topologies.parse("v5e-16")
    with pytest.raises(UserError, match="unknown kind of chip 'v5'"):
        topologies.parse("v5:4x4")
    with pytest.raises(UserError, match="this process has 8 CPU devices"):
        topologies.devices(topologies.parse("cpu:99"))


@pytest.mark.parametrize("name, extra", [("v5e:4x4", "tpu"), ("h200:8", "cuda")])
def test_a_missing_compiler_is_named(monkeypatch, name, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf'pip install "flm-jax\[{extra}\]"'):
        topologies.devices(topologies.parse(name))


def test_environment_of_a_command_line():
    tpu = compile.environment(["compile", "--batch=3", "--topology=v5e:4x4"])
    assert tpu["JAX_PLATFORMS"] == "cpu" and tpu["TPU_SKIP_MDS_QUERY"] == "1"
    cpu = compile.environment(["compile", "--topology", "cpu:12"])
    assert cpu["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=12")


def command(*arguments):
    """Runs the planner as a user does; the environment of the tests must not reach it."""
    kept = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS" and k[:4] != "JAX_"}
    words = [sys.executable, "-m", "flm_jax.compile", *arguments]
    return subprocess.run(words, env=kept, capture_output=True, text=True, timeout=300)


CPU = ("--topology=cpu:2", "--config=configs/phrases/flm.py", "--config.model.dim=16")


def test_the_command(tmp_path):
    done = command(*CPU, "--vocab_size=4", "--batch=4", f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["topology"] == "cpu:2" and plan["devices"] == 2 and plan["rows_per_device"] == 2
    assert plan["config"]["model"]["vocab_size"] == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((CPU[0], "--config=configs/none.py"), "--config cannot be read"),
        ((*CPU, "--json=setup.py/plan.json"), "--json=setup.py/plan.json, which cannot be written"),
        ((*CPU, "--vocab_size=4", "--topology=v9:2x2"), "unknown kind of chip 'v9'"),
        ((*CPU, "--vocab_size=4", "--config.model.attention=splash"), "runs on tpu, these"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len([s for s in done.stderr.splitlines() if s.startswith("error: ")]) == 1


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_slice_is_planned(tmp_path):
    config = ("--config=configs/owt/flm.py", "--vocab_size=300", "--config.model.attention=splash")
    small = ("--config.model.length=128", "--config.model.dim=128", "--config.model.depth=2")
    heads = ("--config.model.heads=2", "--config.mesh.fsdp=4", "--config.mesh.data=1")
    where = ("--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}")
    done = command(*config, *small, *heads, *where, "--batch=16")
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["fits"] and plan["memory_bytes"]["peak"] > plan["memory_bytes"]["arguments"] > 0
    assert plan["flops"]["kinds"]["kernel"] > 0 and "all-gather" in plan["collectives"]
    done = command(*config, *heads[:1], *where, "--batch=4096", "--config.model.scan_blocks=True")
    assert done.returncode == 1, done.stderr
    refused = json.loads((tmp_path / "plan.json").read_text())
    assert refused["memory_bytes"]["peak"] > refused["memory_bytes"]["limit"]
    done = command(*config, "--topology=v5e:3x5")
    assert done.returncode == 2 and "expected one that exists" in done.stderr


def launch(*arguments):
    words = ["bash", "launch/compile_only.sh", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def test_the_launch_script_says_what_it_would_run():
    done = launch("--dry_run", "--", "--config=configs/owt/flm.py", "--topology=h200:8")
    assert done.returncode == 0 and "make_venv .venv-plan cuda" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("python -m flm_jax.compile --config=configs/owt")
    assert "make_venv .venv-plan tpu" in launch("--dry_run", "--", "--topology=v5e:4x4").stdout
    assert launch("--dry_run").stderr.startswith("error: no flags for flm_jax.compile")
