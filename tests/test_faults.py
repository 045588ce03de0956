"""Full disks, lost or changed data, clocks that differ: named errors, checkpoints intact."""

import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath
from test_bad_input import _corpus, _text_config
from test_endurance import Batches, restored, small_run
from test_training import run

from flm_jax.core.errors import UserError
from flm_jax.core.files import StepLines
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.packing import PackedSource
from flm_jax.data.pipeline import make_iterator
from flm_jax.distributed import agreement
from flm_jax.training.logs import MetricsLog


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
    assert small_run(workdir, Batches(), size=SIZE) == 0


def test_metrics_that_cannot_be_written_end_the_run(tmp_path):
    log = MetricsLog(tmp_path, 0)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="metrics could not be written .*No space left"):
        log.write(1, {"a": 1.0})


def test_a_torn_line_of_metrics_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsLog(tmp_path, 2).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_metrics_grow_where_files_cannot(tmp_path, monkeypatch):
    """An object store keeps whole objects alone: what was written before is written again."""
    path = epath.Path(tmp_path / "metrics.jsonl")
    path.write_text('{"step": 1}\n{"step": 2}\n')
    log = StepLines(path, 1)
    monkeypatch.setattr(log, "_remote", True)
    opens = type(path).open

    def refuse(path, mode="r", *args, **kwargs):
        assert "a" not in mode, f"{path} opened to append"
        return opens(path, mode, *args, **kwargs)

    monkeypatch.setattr(type(path), "open", refuse)
    log.append({"step": 2, "a": 1.0})
    log.append({"step": 3, "a": 2.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def _prepared(folder):
    path = _corpus(folder, "characters")
    return path, next(Path(path).glob("train-*.tokens"))


def test_an_unreadable_shard_is_named_when_opened(tmp_path):
    path, shard = _prepared(tmp_path)
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(UserError, match=f"{shard.name} has .* bytes; the manifest expects"):
        run(_text_config(path), tmp_path / "run")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        run(_text_config(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("fault", ["removed", "cut short"])
def test_a_shard_lost_in_mid_training_is_named(tmp_path, fault, threads):
    path, shard = _prepared(tmp_path)
    prepared = load_prepared(path)
    source = PackedSource(prepared.split("train"), prepared.tokenizer, 16, "wrap")
    batches = make_iterator(source, global_batch=8, seed=0, threads=threads, prefetch=1)

    def to_global(batch):
        if batches.get_state()["batches"] == 6:
            shard.unlink() if fault == "removed" else os.truncate(shard, 0)
        return {"tokens": np.ones((8, 2), np.float32), "mask": batch["mask"]}

    with pytest.raises(UserError, match=f"{shard.name} cannot be read any more .*put the file"):
        small_run(tmp_path / "run", batches, to_global=to_global, steps=500)
    assert int(restored(tmp_path / "run").step) == 4


def test_changed_data_are_refused(tmp_path):
    path, _ = _prepared(tmp_path)
    config = _text_config(path)
    config.train.steps = 2
    run(config, tmp_path / "run")
    (tmp_path / "other").mkdir()
    other = _corpus(tmp_path / "other", "characters", text="be or not to be to\n")
    shutil.rmtree(path)
    shutil.copytree(other, path)
    config.train.steps = 4
    with pytest.raises(UserError, match="the saved data position has sources .*expected equal"):
        run(config, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"2"}


def test_clock_skew_is_told():
    assert agreement.skew_warning([1.8e9, 1.8e9 + 59.0]) == ""
    line = agreement.skew_warning([1.8e9, 1.8e9 + 100.0, 1.8e9 - 20.0])
    assert "processes 2 and 1 differ by 120 s" in line and "\n" not in line
