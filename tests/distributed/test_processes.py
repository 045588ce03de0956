"""The same run on one device, on meshes of 8, and over 2 and 4 real processes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from configs.phrases.flm import get_config
from flm_jax.config.check import check
from flm_jax.core.errors import UserError
from flm_jax.distributed import sharding
from flm_jax.distributed.processes import expected_processes, initialize
from flm_jax.training.trainer import train_run
from helpers.compiling import FAST

STEPS = 10
_FLAGS = {
    "data.task_size": 512,
    "model.dim": 32,
    "model.depth": 2,
    "model.heads": 8,
    "model.cond_dim": 16,
    "model.loss_tile": 1,
    "train.batch": 16,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.checkpoint_every": 5,
    "optim.warmup_steps": 2,
    "eval.batches": 1,
    "eval.sample_steps": 4,
}
MESHES = {
    "8 data": (8, 1, 1),
    "8 fsdp": (1, 8, 1),
    "8 tensor": (1, 1, 8),
    "2x2x2": (2, 2, 2),
}


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def _settings(mesh):
    return _FLAGS | dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), mesh))


def _command(workdir, mesh):
    flags = _settings(mesh)
    return [
        *(sys.executable, "-m", "flm_jax.train", "--config=configs/phrases/flm.py:phrases4"),
        *(f"--config.{key}={value}" for key, value in flags.items()),
        f"--workdir={workdir}",
    ]


def _environment(devices: int) -> dict[str, str]:
    return os.environ | {
        "XLA_FLAGS": f"{FAST} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.path.abspath(".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _train(workdir, mesh, processes=1):
    """Runs `processes` processes with the mesh's devices shared among them."""
    env = _environment(int(np.prod(mesh)) // processes)
    where = f"localhost:{_free_port()}"
    running = []
    for index in range(processes):
        if processes > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": where,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
            }
        running.append(
            subprocess.Popen(
                _command(workdir, mesh),
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [p.communicate(timeout=300)[0] for p in running]
    finally:
        for process in running:
            process.kill()
    assert [p.returncode for p in running] == [0] * processes, "\n".join(outputs)
    return outputs


def _metric(workdir, name):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {r["step"]: r[name] for r in records if name in r}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone") / "run"
    _train(workdir, (1, 1, 1))
    return workdir


def _assert_same_run(workdir, alone):
    for name in ("train/nll_nats_per_token", "eval/nll_nats_per_token"):
        got, expected = _metric(workdir, name), _metric(alone, name)
        assert list(got) == list(expected)
        np.testing.assert_allclose(list(got.values()), list(expected.values()), atol=1e-5, rtol=0)
    assert len(_metric(workdir, "train/nll_nats_per_token")) == STEPS
    same = [(w / "samples" / f"{STEPS}.txt").read_text() for w in (workdir, alone)]
    assert same[0] == same[1]


@pytest.mark.parametrize("name", MESHES)
def test_losses_do_not_depend_on_the_mesh(name, alone, tmp_path):
    config = get_config("phrases4")
    config.update_from_flattened_dict(_settings(MESHES[name]))
    assert train_run(check(config), str(tmp_path / "run")) == 0
    _assert_same_run(tmp_path / "run", alone)


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [
        (2, (1, 2, 1)),
        pytest.param(4, (2, 2, 1), marks=pytest.mark.slow),
        (4, (1, 2, 2)),
    ],
)
def test_losses_do_not_depend_on_the_processes(processes, mesh, alone, tmp_path):
    """(1, 2, 2) over 4 processes: two of them hold the same rows, each half of the vocabulary."""
    outputs = _train(tmp_path / "run", mesh, processes)
    _assert_same_run(tmp_path / "run", alone)
    assert f"{processes} processes" in outputs[0]
    assert "step " not in outputs[1]  # one process speaks for all


def test_rows_of_each_process_follow_the_mesh():
    mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
    np.testing.assert_array_equal(sharding.local_rows(mesh, 16), np.arange(16))


@pytest.mark.parametrize(
    ("env", "count"),
    [
        ({}, 1),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, 1),  # the batch script, not a step
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n[0-3]"}, 4),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "h:1",
                "JAX_NUM_PROCESSES": "3",
                "JAX_PROCESS_ID": "2",
            },
            3,
        ),
    ],
)
def test_processes_announced_by_the_environment(env, count):
    assert expected_processes(env) == count


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID not"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "h:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            "an index below it",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
            "expected HOST:PORT",
        ),
    ],
)
def test_inconsistent_environments_are_refused(env, message):
    with pytest.raises(UserError, match=message):
        expected_processes(env)


def test_a_coordinator_that_does_not_come_is_named(monkeypatch):
    address = f"localhost:{_free_port()}"
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    with pytest.raises(UserError, match=f"process 0 does not listen at {address} after 1 s"):
        initialize(timeout=1)
