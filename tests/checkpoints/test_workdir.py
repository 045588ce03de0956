"""Damaged checkpoints are set aside, full disks are named, and nothing saved is lost."""

import os
import resource
import shutil
import subprocess
import time

import jax
import jax.numpy as jnp
import pytest

from flm_jax.checkpoints.state import new_state
from flm_jax.checkpoints.workdir import Checkpoints, latest_step, load_ema
from flm_jax.core.errors import UserError
from helpers.loop import DAMAGES, SMALL_OPTIMIZER, Batches, restored, saved, small_run, small_state
from helpers.runs import assert_equal, final_params, run, tiny_config


class FillsUp(Batches):
    """Leaves no room once step 4 is saved, so that step 8 cannot be."""

    def __init__(self, workdir, fill):
        super().__init__()
        self._saved, self._fill = workdir / "checkpoints/4", fill

    def __next__(self):
        if self.taken == 6:
            deadline = time.monotonic() + 20
            while not self._saved.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            self._fill()
        return super().__next__()


SIZE = 40_000  # float32 numbers of a state whose files exceed the room left


def test_files_that_cannot_grow_end_the_run(tmp_path):
    """Writing fails as on a full disk, with another number, and without any rights."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, old[1]))

    batches = FillsUp(tmp_path / "run", fill)
    try:
        with pytest.raises(UserError, match=r"of step 8 could not be written to .*run.*make room"):
            small_run(tmp_path / "run", batches, size=SIZE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert int(restored(tmp_path / "run", size=SIZE).step) == 4


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount command ({error})")
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run(small_disk):
    def fill():
        with pytest.raises(OSError), (small_disk / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    workdir = small_disk / "run"
    with pytest.raises(UserError, match=r"of step 8 could not be .*No space left.*make room"):
        small_run(workdir, FillsUp(workdir, fill), size=SIZE)
    (small_disk / "fill").unlink()
    assert int(restored(workdir, size=SIZE).step) == 4
    small_run(workdir, Batches(), size=SIZE)


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
    more = new_state({"w": jnp.ones(10), "v": jnp.ones(3)}, SMALL_OPTIMIZER)
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


def test_names_that_are_no_steps_are_left_alone(tmp_path, capsys):
    """A copy that the user made is neither read nor set aside nor counted as damaged."""
    folder = saved(tmp_path, 4, 8)
    for name in (
        "backup_2000",
        "2000_copy",
        "0009",
        "step_9",
        "backup_2000.damaged",
        "old.damaged",
    ):
        shutil.copytree(folder / "8", folder / name)
    before = sorted(path.name for path in folder.iterdir())
    assert latest_step(tmp_path) == 8
    assert load_ema(tmp_path, small_state().ema_params)[1] == 8
    assert int(restored(tmp_path).step) == 8
    assert "DAMAGED" not in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    for step in ("4", "8"):
        shutil.rmtree(folder / step)
    assert restored(tmp_path) is None
