"""Workdirs in stores that orbax does not write to; a folder stands for the bucket."""

import jax
import pytest

from flm_jax.checkpoints.object_store import needed
from flm_jax.checkpoints.workdir import Checkpoints, _Place, latest_step
from flm_jax.core.errors import UserError
from helpers.loop import DAMAGES, Batches, restored, saved, small_run


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr("flm_jax.checkpoints.workdir.needed", lambda workdir: True)
    return tmp_path / "bucket"


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_which_stores_are_mirrored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert needed("s3://bucket/run") and not needed("gs://bucket/run") and not needed("run")
    assert str(_Place("gs://bucket/run").folder) == "gs://bucket/run/checkpoints"
    assert str(_Place("run").folder) == f"{tmp_path}/run/checkpoints"


def test_a_run_is_copied_and_continues_from_the_copies(bucket):
    small_run(bucket, Batches(), steps=8)
    folder = bucket / "checkpoints"
    assert _names(folder) == ["4", "8"] and (folder / "8" / "COMPLETE").exists()
    assert latest_step(bucket) == 8
    assert int(restored(bucket).step) == 8
    small_run(bucket, Batches(), steps=12)
    assert _names(folder) == ["12", "8"]


def test_half_a_copy_does_not_count(bucket):
    folder = saved(bucket, 10, 20)
    (folder / "20" / "COMPLETE").unlink()
    assert int(restored(bucket).step) == 10
    saved(bucket, 20)
    assert int(restored(bucket).step) == 20


def test_a_damaged_copy_is_disowned_and_can_be_replaced(bucket, capsys):
    folder = saved(bucket, 10, 20)
    DAMAGES["arrays lost"](folder / "20")
    assert int(restored(bucket).step) == 10
    assert "DAMAGED" in capsys.readouterr().err
    assert not (folder / "20" / "COMPLETE").exists()
    saved(bucket, 20)
    assert int(restored(bucket).step) == 20 and not (folder / "20" / "DAMAGED").exists()


def test_damaged_copies_alone_do_not_start_anew(bucket):
    folder = saved(bucket, 10)
    DAMAGES["arrays lost"](folder / "10")
    for _ in range(2):
        with pytest.raises(UserError, match="none of the checkpoints .*start anew"):
            restored(bucket)


def test_a_store_that_does_not_take_the_copy_is_named(bucket):
    folder = saved(bucket, 10)
    (folder / "20").write_text("in the way")
    with pytest.raises(UserError, match="step 20 could not be written to .*bucket.*earlier"):
        saved(bucket, 20)
    (folder / "20").unlink()
    assert int(restored(bucket).step) == 10


def test_several_processes_are_refused(bucket, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="2 processes write checkpoints together"):
        Checkpoints(bucket)
