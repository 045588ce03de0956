"""What goes wrong in long runs: each fault is named, and nothing that was saved is lost."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.distributed import sharding
from helpers.compiling import FAST
from helpers.launching import load
from helpers.loop import DAMAGES, Batches, restored, small_run
from helpers.runs import run, tiny_config

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {  # of the processes started here
    "XLA_FLAGS": FAST,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def test_non_finite_losses_stop_the_run_in_time(tmp_path):
    batches = Batches(bad=6)
    (tmp_path / "victim").write_text("kept")
    (tmp_path / "bad_batch_8.npz").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="3 steps in a row .* at step 8 .*bad_batch_8.npz"):
        small_run(tmp_path, batches)
    assert batches.taken <= 10 and (tmp_path / "victim").read_text() == "kept"
    with np.load(tmp_path / "bad_batch_8.npz") as bad:
        assert set(bad) == {"tokens", "mask", "step"} and bad["step"] == 8
        assert np.isnan(bad["tokens"]).all() and bad["tokens"].shape == (8, 2)
    assert int(restored(tmp_path).step) == 4


def test_a_diverging_training_ends_with_status_2(tmp_path):
    flags = {
        "data.task_size": 64,
        "model.dim": 16,
        "model.depth": 1,
        "model.heads": 2,
        "train.batch": 8,
        "train.steps": 200,
        "train.log_every": 1000,
        "train.checkpoint_every": 1,
        "train.max_skipped": 4,
        "optim.lr": 1e30,
        "optim.warmup_steps": 1,
        "optim.schedule": "constant",
    }
    command = [sys.executable, "-m", "flm_jax.train", "--config=configs/phrases/flm.py"]
    command += [f"--config.{k}={v}" for k, v in flags.items()] + [f"--workdir={tmp_path}/run"]
    done = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.strip().splitlines()
    (path,) = (tmp_path / "run").glob("bad_batch_*.npz")
    assert line.startswith("error: 4 steps in a row had a non-finite") and str(path) in line
    assert (tmp_path / "run/checkpoints").is_dir()


def _two_processes(flags):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = f"localhost:{free.getsockname()[1]}"
    env = ENVIRONMENT | {"JAX_COORDINATOR_ADDRESS": where, "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-u", "-m", "flm_jax.train", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(command, cwd=ROOT, env=env | {"JAX_PROCESS_ID": str(index)}, **pipes)
        for index in range(2)
    ]


def test_two_processes_fall_back_and_stop_together(tmp_path):
    """The newest checkpoint is damaged; then a signal reaches one of the processes alone."""
    config = tiny_config()
    config.mesh.fsdp, config.train.log_every = 8, 10
    run(config, tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    DAMAGES["arrays cut short"](folder / "8")
    file = tmp_path / "config.py"
    file.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from helpers.runs import tiny_config as get_config\n"
    )
    flags = [f"--config={file}", "--config.mesh.fsdp=2", "--config.train.steps=2000"]
    flags += [f"--workdir={tmp_path}/run", "--config.train.checkpoint_every=500"]
    first, second = both = _two_processes([*flags, "--config.train.log_every=10"])
    lines = []
    try:
        for line in first.stdout:
            lines.append(line)
            if line.startswith("step 20/"):
                break
        second.send_signal(signal.SIGTERM)
        outputs = ["".join(lines) + first.communicate(timeout=60)[0], second.communicate()[0]]
    finally:
        for process in both:
            process.kill()
    assert [first.returncode, second.returncode] == [75, 75], outputs
    assert "8 is DAMAGED" in outputs[0] and "run from step 4" in outputs[0]
    assert (folder / "8.damaged").is_dir()
    stopped = int(re.search(r"another process: saved step (\d+);", outputs[0])[1])
    assert stopped < 2000 and (folder / str(stopped)).is_dir()


def test_host_overhead_per_step_is_under_two_milliseconds(tmp_path):
    """From one batch to the next, with a step of microseconds; 8 devices cost more than one."""
    mesh = sharding.make_mesh(sharding.MeshConfig())
    rows = sharding.local_rows(mesh, 8)
    marks = []

    class Timed(Batches):
        def __next__(self):
            marks.append(time.perf_counter())
            return super().__next__()

    small_run(
        tmp_path,
        Timed(),
        to_global=lambda batch: sharding.global_batch(batch, mesh, rows, 8),
        steps=400,
        checkpoint_every=1000,
        watchdog_seconds=60.0,
    )
    median = float(np.median(np.diff(marks[50:])))
    print(f"{median * 1e3:.3f} ms a step")
    assert median < 2e-3


def test_a_handful_of_kills(tmp_path):
    lines = []
    figures = load("kill_test").kill_test(
        tmp_path, ROOT / ".jax_cache", kills=3, seed=1, steps=100, say=lines.append
    )
    assert figures["kills"] == 3 and figures["runs"] >= 1, lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "steps"), [("samples", 200), ("benchmark", 48), ("policy", 30)], ids=str
)
def test_kills_of_samples_benchmarks_and_policies(tmp_path, what, steps):
    lines = []
    figures = load("kill_test").kill_test(
        tmp_path, ROOT / ".jax_cache", kills=3, seed=3, steps=steps, what=what, say=lines.append
    )
    assert figures["kills"] == 3 and figures["runs"] >= 1, lines
