"""One writer at a time in a folder: others are refused, and death gives the lock up."""

import os
import socket
import subprocess
import sys
import threading

import pytest

from flm_jax.checkpoints.portable import save_folder
from flm_jax.core.errors import UserError
from flm_jax.core.files import write_whole
from flm_jax.core.locks import alone, alone_in
from flm_jax.data.corpus import store
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.evaluation.compare import compare_run
from flm_jax.inference.self_generation import generate
from flm_jax.training.policy_trainer import train_policy_run
from flm_jax.training.reward_trainer import train_text_reward
from flm_jax.training.trainer import train_run
from helpers.runs import tiny_config

HOLDS = """
import sys
from flm_jax.core.locks import alone
with alone(sys.argv[1], "training", shared=len(sys.argv) > 2):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder, *more):
    """A process that holds the lock until its input ends or it is killed."""
    line = [sys.executable, "-c", HOLDS, str(folder), *more]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(line, text=True, **pipes)
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_and_its_death_gives_the_lock_up(tmp_path):
    with holder(tmp_path / "run") as process:
        said = f"run is in use by process {process.pid} on {socket.gethostname()}, training since 2"
        with pytest.raises(UserError, match=said), alone(tmp_path / "run", "training"):
            pass
        process.kill()
        process.wait()
    assert os.listdir(tmp_path / "run") == [".flm_jax.lock"]
    with alone(tmp_path / "run", "training"):
        (tmp_path / "run" / "kept").touch()
    assert os.listdir(tmp_path / "run") == ["kept"]


def test_those_that_share_keep_others_out(tmp_path):
    with holder(tmp_path, "shared") as process:
        with alone(tmp_path, "preparing", shared=True):
            pass
        with pytest.raises(UserError, match="in use by process"), alone(tmp_path, "merging"):
            pass
        process.communicate("")
    with alone(tmp_path, "merging"):
        pass


def test_folders_that_stay_empty_are_removed(tmp_path):
    with alone(tmp_path / "a/b", "training"), alone(tmp_path / "a/c", "training"):
        assert sorted(os.listdir(tmp_path / "a")) == ["b", "c"]
        again = alone(tmp_path / "a/../a/b", "training")
        with pytest.raises(UserError, match="in use by this process"), again:
            pass
    assert os.listdir(tmp_path) == []
    (tmp_path / ".flm_jax.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="lock cannot be opened"), alone(tmp_path, "training"):
        pass
    assert not (tmp_path / "elsewhere").exists()
    with alone("gs://bucket/run", "training"):
        pass


def test_a_lock_whose_file_is_gone_is_given_up_all_the_same(tmp_path):
    for _ in range(2):
        with alone(tmp_path, "training"):
            os.unlink(tmp_path / ".flm_jax.lock")


def test_a_lock_that_is_another_file_is_not_written(tmp_path):
    """What a folder of others has in the place of the lock: a second name, a link, a pipe."""
    victim, lock = tmp_path / "victim", tmp_path / "run/.flm_jax.lock"
    victim.write_text("kept")
    lock.parent.mkdir()
    for make in (lock.hardlink_to, lock.symlink_to, lambda _: os.mkfifo(lock)):
        make(victim)
        with pytest.raises(UserError, match="flm_jax.lock .*remove it"), alone(lock.parent, "a"):
            pass
        assert victim.read_text() == "kept"
        lock.unlink()


def test_a_folder_that_its_holder_removes_is_made_again(tmp_path, monkeypatch):
    folder, opens = tmp_path / "run", os.open

    def late(path, *args, **named):
        if not late.done:
            late.done = True
            folder.rmdir()  # as the one does that held it until now, and had made it
        return opens(path, *args, **named)

    late.done = False
    monkeypatch.setattr(os, "open", late)
    with alone(folder, "training"):
        assert os.listdir(folder) == [".flm_jax.lock"]


def test_threads_of_a_process_take_turns(tmp_path, monkeypatch):
    """One of them is held up as it opens the file, which another has not locked yet."""
    opened, go_on, said = threading.Event(), threading.Event(), []

    def slow(*args):
        if not opened.is_set():
            opened.set()
            assert go_on.wait(20.0)
        return os_open(*args)

    def second():
        try:
            with alone(tmp_path, "training"):
                said.append("held")
        except UserError as error:
            said.append(str(error))

    os_open = os.open
    monkeypatch.setattr(os, "open", slow)
    threads = [threading.Thread(target=second) for _ in range(2)]
    threads[0].start()
    assert opened.wait(20.0)
    threads[1].start()
    threads[1].join()
    go_on.set()
    threads[0].join()
    assert "in use by this process" in said[0] and said[1] == "held"


def test_only_the_first_process_of_a_run_holds_the_lock(tmp_path):
    held = alone_in("out", "training", lambda: False)(lambda out: os.listdir(tmp_path))
    with alone(tmp_path / "out", "training"):
        assert held(str(tmp_path / "out")) == ["out"]


def test_all_that_write_a_folder_hold_its_lock(tmp_path):
    out = str(tmp_path / "out")
    source = SourceConfig("text", str(tmp_path / "a.txt"), "line")
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    whole = PrepareConfig(source, out, "bytes")
    part = PrepareConfig(source, out, "bytes", shard=store.Shard(0, 2))
    writers = {
        "training": lambda: train_run(tiny_config().to_dict(), out),
        "policy": lambda: train_policy_run({}, out),
        "reward": lambda: train_text_reward("w", "a", out, steps=1, batch=1, lr=1.0, seed=0),
        "texts": lambda: generate("w", out, num=1, steps=1, batch_size=1, seed=0),
        "comparison": lambda: compare_run({}, out),
        "preparation": lambda: prepare(whole, log=print),
        "part": lambda: prepare(part, log=print),
        "export": lambda: save_folder(out, {}, "", {}, ByteTokenizer(), step=1, times=None),
    }
    with alone(out, "something"):
        for name, write in writers.items():
            with pytest.raises(UserError, match="out is in use by"):
                write()
                pytest.fail(name)
    prepare(part)
    prepare(PrepareConfig(source, out, "bytes", shard=store.Shard(1, 2)))
    with alone(out, "something"), pytest.raises(UserError, match="out is in use by"):
        store.merge(out)
    assert store.merge(out)["splits"]["train"]["documents"] == 2


def test_tokens_of_another_preparation_are_found(tmp_path):
    """They take the place of this one's before its manifest is written, in the same size."""
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    cfg = PrepareConfig(SourceConfig("text", str(tmp_path / "a.txt"), "line"), str(tmp_path / "o"))
    cfg = PrepareConfig(cfg.source, cfg.out, "bytes")

    def intrude(line):
        tokens = tmp_path / "o/train-00000-of-00001.tokens"
        if tokens.exists():
            tokens.write_bytes(bytes(len(tokens.read_bytes())))

    with pytest.raises(UserError, match="tokens does not match its SHA-256"):
        prepare(cfg, log=intrude)
    assert not (tmp_path / "o/manifest.json").exists()


def test_a_link_that_waits_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    names = ("config.json.tmp", "train-00000-of-00001.tokens.tmp")
    for name in names:
        (tmp_path / name).symlink_to(victim)
    write_whole(tmp_path / "config.json", "{}")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    prepare(PrepareConfig(SourceConfig("text", str(tmp_path / "a.txt")), str(tmp_path), "bytes"))
    assert victim.read_text() == "kept" and (tmp_path / "config.json").read_text() == "{}"
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder").mkdir()
        write_whole(tmp_path / "folder", "a")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "folder"])
