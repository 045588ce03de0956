"""What goes wrong in long runs: each fault is named, and nothing that was saved is lost."""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import assert_equal, final_params, run, tiny_config

from flm_jax.checkpoints.state import new_state
from flm_jax.checkpoints.workdir import Checkpoints, load_ema
from flm_jax.core.errors import UserError
from flm_jax.distributed import agreement, sharding
from flm_jax.training.loop import Loop, Run
from flm_jax.training.settings import TrainConfig
from flm_jax.training.step import make_train_step
from flm_jax.training.watchdog import Watchdog

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {  # of the processes started here
    "XLA_FLAGS": "",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


class Batches:
    """Counts up; NaN from step `bad` on; sleeps before step `slow`."""

    def __init__(self, bad=None, slow=None, seconds=0.0):
        self._bad, self._slow, self._seconds = bad, slow, seconds
        self.taken, self.stall_seconds = 0, 0.0

    def __next__(self):
        self.taken += 1
        if self.taken == self._slow:
            time.sleep(self._seconds)
        value = np.nan if self._bad and self.taken >= self._bad else self.taken
        rows = np.full((8, 2), value, np.float32)
        return {"tokens": rows, "mask": np.ones((8, 2), bool)}

    def get_state(self):
        return {"batches": self.taken}


def _objective(params, frozen, batch, key, rows):
    del frozen, key, rows
    loss = jnp.sum(params["w"] ** 2) * jnp.mean(batch["tokens"])
    return loss, {"nll_nats_per_token": loss}


_OPTIMIZER = optax.adam(1e-3)
_STEP = jax.jit(
    make_train_step(_objective, _OPTIMIZER, seed=0, microbatches=1, ema_decay=0.9),
    donate_argnums=0,
)


def small_state(size=10, step=0):
    state = new_state({"w": jnp.linspace(0.1, 1.0, size)}, _OPTIMIZER)
    return state._replace(step=jnp.int32(step))


def small_run(workdir, batches, size=10, to_global=lambda batch: batch, **changed):
    """The real loop around a step of microseconds."""
    cfg = {
        "steps": 12,
        "batch": 8,
        "microbatches": 1,
        "log_every": 1000,
        "checkpoint_every": 4,
        "keep_checkpoints": 2,
        "max_skipped": 3,
        "watchdog_seconds": 0.0,
    }
    run = Run(
        state=small_state(size),
        train_step=_STEP,
        frozen={},
        batches=batches,
        to_global=to_global,
        evaluate=lambda params: ({}, []),
        eval_every=0,
        meta={"length": 2},
    )
    Path(workdir).mkdir(parents=True, exist_ok=True)
    cfg = TrainConfig(**cfg | changed)
    with Loop(run, cfg, workdir, Checkpoints(workdir, 2)) as loop:
        return loop.train()


def restored(workdir, size=10):
    checkpoints = Checkpoints(workdir, 2)
    found = checkpoints.restore(small_state(size))
    checkpoints.close()
    return found and found[0]


def saved(workdir, *steps):
    checkpoints = Checkpoints(workdir, 2)
    for step in steps:
        checkpoints.save(small_state(step=step), {"step": step})
    checkpoints.close()
    return workdir / "checkpoints"


def _halve(*patterns):
    def damage(folder):
        files = [f for p in patterns for f in folder.glob(p) if f.stat().st_size > 60]
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return damage


def _remove(*patterns):
    def damage(folder):
        for file in [file for pattern in patterns for file in folder.glob(pattern)]:
            shutil.rmtree(file) if file.is_dir() else file.unlink()

    return damage


DAMAGES = {
    "arrays cut short": _halve("train/ocdbt.process_0/d/*", "train/d/*"),
    "average cut short": _halve("ema/ocdbt.process_0/d/*", "ema/d/*"),
    "index cut short": _halve("train/_METADATA"),
    "arrays lost": _remove("train/ocdbt.process_0/d/*", "train/d/*"),
    "manifest lost": _remove("ema/manifest.ocdbt"),
    "item lost": _remove("train"),
    "record lost": _remove("meta"),
    "record cut short": lambda folder: (folder / "meta/metadata").write_text('{"st'),
    "all lost": _remove("*"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path, capsys, damage):
    folder = saved(tmp_path, 10, 20)
    damage(folder / "20")
    assert int(restored(tmp_path).step) == 10
    message = capsys.readouterr().err
    assert f"{folder}/20 is DAMAGED (" in message and "set aside as" in message
    assert {p.name for p in folder.iterdir()} == {"10", "20.damaged"}


def test_the_step_of_a_damaged_checkpoint_can_be_saved_and_damaged_again(tmp_path):
    folder = saved(tmp_path, 10, 20)
    DAMAGES["arrays lost"](folder / "20")
    assert int(restored(tmp_path).step) == 10
    saved(tmp_path, 20)
    assert int(restored(tmp_path).step) == 20
    DAMAGES["arrays lost"](folder / "20")
    assert int(restored(tmp_path).step) == 10
    assert {p.name for p in folder.iterdir()} == {"10", "20.damaged", "20.damaged-2"}


def test_a_half_written_folder_is_passed_over_and_cleaned_up(tmp_path):
    folder = saved(tmp_path, 10, 20)
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp")
    assert int(restored(tmp_path).step) == 10
    saved(tmp_path, 30)
    assert {p.name for p in folder.iterdir()} == {"10", "30"}


def test_a_run_with_damaged_checkpoints_alone_does_not_start_anew(tmp_path):
    folder = saved(tmp_path, 10, 20)
    for step in ("10", "20"):
        DAMAGES["arrays lost"](folder / step)
    for _ in range(2):  # nor at the second try, when all of them are set aside
        with pytest.raises(UserError, match=r"none of the.*10.damaged, 20.damaged.*start anew"):
            restored(tmp_path)
    assert restored(tmp_path / "empty") is None


def test_another_model_is_refused_and_nothing_set_aside(tmp_path):
    folder = saved(tmp_path, 10, 20)
    with pytest.raises(UserError, match=r"another model: ema/w has shape \(10,\) there, \(11,\)"):
        restored(tmp_path, size=11)
    checkpoints = Checkpoints(tmp_path, 2)
    more = new_state({"w": jnp.ones(10), "v": jnp.ones(3)}, _OPTIMIZER)
    with pytest.raises(UserError, match=r"another model: ema/v has shape none there, \(3,\) here"):
        checkpoints.restore(more)
    assert {p.name for p in folder.iterdir()} == {"10", "20"}


def test_storage_that_refuses_is_no_damage(tmp_path, monkeypatch):
    folder = saved(tmp_path, 10, 20)

    def refuse(*args, **kwargs):
        raise ValueError("PERMISSION_DENIED: Error opening")

    monkeypatch.setattr("orbax.checkpoint.StandardCheckpointHandler.restore", refuse)
    with pytest.raises(UserError, match="20 cannot be read now .*PERMISSION_DENIED"):
        restored(tmp_path)
    assert {p.name for p in folder.iterdir()} == {"10", "20"}


def test_sampling_falls_back_without_touching_the_workdir(tmp_path, capsys):
    folder = saved(tmp_path, 10, 20)
    DAMAGES["average cut short"](folder / "20")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params, step = load_ema(
        tmp_path, {"w": jax.ShapeDtypeStruct((10,), jnp.float32, sharding=device)}
    )
    assert step == 10 and params["w"].shape == (10,)
    assert "20 is DAMAGED" in capsys.readouterr().err
    assert {p.name for p in folder.iterdir()} == {"10", "20"}


def test_a_run_past_a_damaged_checkpoint_is_bit_equal(tmp_path, capsys):
    config = tiny_config()
    run(config, tmp_path / "run")
    whole = final_params(tmp_path / "run")
    DAMAGES["arrays cut short"](tmp_path / "run/checkpoints/8")
    run(config, tmp_path / "run")
    assert "from step 4" in capsys.readouterr().out
    assert_equal(whole, final_params(tmp_path / "run"))


def test_times_of_files_do_not_matter(tmp_path):
    folder = saved(tmp_path, 10, 20)
    for path in [folder / "10", *(folder / "10").rglob("*")]:
        os.utime(path, (4e9, 4e9))
    for path in [folder / "20", *(folder / "20").rglob("*")]:
        os.utime(path, (1e6, 1e6))
    assert int(restored(tmp_path).step) == 20
    saved(tmp_path, 30)  # and the oldest by number goes
    assert {p.name for p in folder.iterdir()} == {"20", "30"}


def test_non_finite_losses_stop_the_run_in_time(tmp_path):
    batches = Batches(bad=6)
    with pytest.raises(UserError, match="3 steps in a row .* at step 8 .*bad_batch_8.npz"):
        small_run(tmp_path, batches)
    assert batches.taken <= 10
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


def test_watchdog_reports_a_stall_once_and_its_end(tmp_path, capsys):
    batches = Batches(slow=6, seconds=1.0)
    assert small_run(tmp_path, batches, watchdog_seconds=0.2) == 0
    message = capsys.readouterr().err
    assert message.count("waiting for: data") == 1  # a loaded machine may stall elsewhere too
    assert "after step 4, waiting for: data" in message  # step 5 is under way, unfetched
    assert "time.sleep(self._seconds)" in message
    assert message.count("training goes on") >= 1
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_watchdog_gives_the_first_step_ten_times_as_long(capsys):
    watchdog = Watchdog(0.1, 7)
    time.sleep(0.5)
    assert capsys.readouterr().err == ""
    time.sleep(0.8)
    assert "after step 7, waiting for: device" in capsys.readouterr().err
    watchdog.completed(8)
    watchdog.waits_for("checkpoint")
    time.sleep(0.3)
    watchdog.close()
    message = capsys.readouterr().err
    assert "step 8 was completed after 1." in message
    assert "after step 8, waiting for: checkpoint" in message


def test_watchdog_can_be_off(capsys):
    watchdog = Watchdog(0.0, 0)
    watchdog.completed(1)
    time.sleep(0.1)
    watchdog.close()
    assert capsys.readouterr().err == ""


def test_processes_vote_on_stopping():
    vote = agreement.StopVote()
    assert int(vote.cast(False)) == 0
    assert int(vote.cast(True)) == 1
    one_of_eight = jax.device_put(np.arange(8) == 5, vote._split)
    assert int(vote._any(one_of_eight)) == 1


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
        "from test_training import tiny_config as get_config\n"
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
    spec = importlib.util.spec_from_file_location("kill_test", ROOT / "launch/kill_test.py")
    kill_test = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kill_test)
    lines = []
    figures = kill_test.kill_test(
        tmp_path, ROOT / ".jax_cache", kills=3, seed=1, steps=100, say=lines.append
    )
    assert figures["kills"] == 3 and figures["runs"] >= 1, lines
