"""Prepared data that are unreadable, lost or changed end a run with a named error."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.packing import PackedSource
from flm_jax.data.pipeline import make_iterator
from helpers.files import prepared_corpus
from helpers.loop import restored, small_run
from helpers.runs import run, text_config


def _prepared(folder):
    path = prepared_corpus(folder, "characters")
    return path, next(Path(path).glob("train-*.tokens"))


def test_an_unreadable_shard_is_named_when_opened(tmp_path):
    path, shard = _prepared(tmp_path)
    content = shard.read_bytes()
    shard.write_bytes(content[:-2])
    with pytest.raises(UserError, match=f"{shard.name} has .* bytes; the manifest expects"):
        run(text_config(path), tmp_path / "run")
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name} is missing"):
        run(text_config(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("fault", ["removed", "cut short"])
def test_a_shard_lost_in_mid_training_is_named(tmp_path, fault, threads):
    path, shard = _prepared(tmp_path)
    prepared = load_prepared(path)
    source = PackedSource(prepared.split("train"), prepared.tokenizer, 16, "wrap", 0)
    batches = make_iterator(
        source, global_batch=8, seed=0, threads=threads, prefetch=1, prefix_crop=0.0
    )

    def to_global(batch):
        if batches.get_state()["batches"] == 6:
            shard.unlink() if fault == "removed" else os.truncate(shard, 0)
        return {"tokens": np.ones((8, 2), np.float32), "mask": batch["mask"]}

    with pytest.raises(UserError, match=f"{shard.name} cannot be read any more .*put the file"):
        small_run(tmp_path / "run", batches, to_global=to_global, steps=500)
    assert int(restored(tmp_path / "run").step) == 4


def test_changed_data_are_refused(tmp_path):
    path, _ = _prepared(tmp_path)
    config = text_config(path)
    config.train.steps = 2
    run(config, tmp_path / "run")
    (tmp_path / "other").mkdir()
    other = prepared_corpus(tmp_path / "other", "characters", text="be or not to be to\n")
    shutil.rmtree(path)
    shutil.copytree(other, path)
    config.train.steps = 4
    with pytest.raises(UserError, match="the saved data position has sources .*expected equal"):
        run(config, tmp_path / "run")
    assert {p.name for p in (tmp_path / "run/checkpoints").iterdir()} == {"2"}
