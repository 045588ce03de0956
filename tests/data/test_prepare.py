"""Prepared folders: contents, sharding, re-runs, damage, and the command line."""

import collections
import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.data.corpus import prepare as corpus_prepare
from flm_jax.data.corpus import store
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig, open_corpus
from flm_jax.data.corpus.store import Shard, load_prepared, merge
from flm_jax.data.tokenizers.builtin import ByteTokenizer


def _silent(message):
    del message


@pytest.fixture
def source(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(f"document {i} " + "x" * i for i in range(60)))
    return SourceConfig("text", str(tmp_path / "corpus.txt"), split_documents="line")


@pytest.fixture
def cfg(source, tmp_path):
    return PrepareConfig(source, str(tmp_path / "out"), tokenizer="bytes")


def _documents(prepared, split):
    stream = prepared.split(split)
    return [prepared.tokenizer.decode(stream.document(i)) for i in range(stream.documents)]


def test_prepared_text_is_the_corpus(cfg):
    prepare(cfg, _silent)
    prepared = load_prepared(cfg.out, verify=True)
    corpus = open_corpus(cfg.source)
    assert list(prepared.splits) == ["train", "valid"]
    for split in prepared.splits:
        texts = [text for _, text in corpus.splits[split]()]
        assert _documents(prepared, split) == texts
        counts = prepared.split(split).counts
        assert counts["characters"] == counts["bytes"] == sum(map(len, texts))
        assert counts["tokens"] == counts["bytes"] + counts["documents"]
    assert prepared.split("valid").documents == 3
    with pytest.raises(UserError, match="did you mean 'valid'"):
        prepared.split("validation")


def test_wide_vocabularies_are_stored_in_four_bytes():
    assert store.token_dtype(65_536) == np.uint16
    assert store.token_dtype(65_537) == np.uint32


def test_shards_merge_to_the_unsharded_documents(cfg, tmp_path):
    prepare(cfg, _silent)
    whole = load_prepared(cfg.out)
    ByteTokenizer().save(tmp_path / "saved")
    parts = dataclasses.replace(cfg, out=str(tmp_path / "parts"), tokenizer=str(tmp_path / "saved"))
    for i in (2, 0):
        prepare(dataclasses.replace(parts, shard=Shard(i, 3)), _silent)
    with pytest.raises(UserError, match="lacks shards 1/3"):
        merge(parts.out)
    with pytest.raises(UserError, match="--merge"):
        load_prepared(parts.out)
    with pytest.raises(UserError, match="parts of a sharded preparation"):
        prepare(parts, _silent)
    prepare(dataclasses.replace(parts, shard=Shard(1, 3)), _silent)
    merge(parts.out)
    merged = load_prepared(parts.out, verify=True)
    for split in whole.splits:
        expected = collections.Counter(_documents(whole, split))
        assert collections.Counter(_documents(merged, split)) == expected
        assert merged.split(split).counts == whole.split(split).counts
    assert len(merged.manifest["splits"]["train"]["shards"]) == 3


def test_merge_refuses_parts_that_differ(cfg):
    prepare(dataclasses.replace(cfg, shard=Shard(0, 2)), _silent)
    other = dataclasses.replace(cfg.source, valid_fraction=0.2)
    prepare(dataclasses.replace(cfg, source=other, shard=Shard(1, 2)), _silent)
    with pytest.raises(UserError, match=r"differ in valid_fraction \(0.05, now 0.2\)"):
        merge(cfg.out)


def test_merge_refuses_two_shardings(cfg):
    for shard in (Shard(0, 2), Shard(1, 3)):
        prepare(dataclasses.replace(cfg, shard=shard), _silent)
    with pytest.raises(UserError, match="mixes parts of 2 and 3 shards"):
        merge(cfg.out)


def test_merge_without_parts(tmp_path):
    with pytest.raises(UserError, match="run prepare_data --shard"):
        merge(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["characters", "sentencepiece"])
def test_shards_do_not_train_tokenizers(cfg, name):
    with pytest.raises(UserError, match="--tokenizer=THAT_FOLDER"):
        prepare(dataclasses.replace(cfg, tokenizer=name, shard=Shard(0, 2)), _silent)


@pytest.mark.parametrize("text", ["2/2", "x", "1", "-1/2", "0/0"])
def test_shard_syntax(text):
    with pytest.raises(UserError, match="expected i/n"):
        Shard.parse(text)


def test_preparing_again_does_nothing_unless_arguments_changed(cfg, tmp_path):
    manifest = prepare(cfg, _silent)
    said = []
    assert prepare(cfg, said.append) == manifest
    assert "already prepared" in said[0]
    changed = dataclasses.replace(cfg, source=dataclasses.replace(cfg.source, valid_fraction=0.1))
    with pytest.raises(UserError, match="valid_fraction .*--overwrite"):
        prepare(changed, _silent)
    prepare(dataclasses.replace(changed, overwrite=True), _silent)
    assert load_prepared(cfg.out).split("valid").documents == 6
    (tmp_path / "corpus.txt").write_text("other\nlines")
    with pytest.raises(UserError, match="identity"):
        prepare(changed, _silent)


def test_prepared_folder_lends_its_tokenizer(cfg, tmp_path):
    trained = dataclasses.replace(cfg, tokenizer="characters")
    prepare(trained, _silent)
    other = dataclasses.replace(cfg, out=str(tmp_path / "other"), tokenizer=cfg.out)
    prepare(other, _silent)
    first, second = load_prepared(cfg.out), load_prepared(other.out)
    assert first.tokenizer.fingerprint == second.tokenizer.fingerprint


def test_interrupted_run_leaves_no_manifest_and_can_be_repeated(cfg, monkeypatch):
    class StopError(Exception):
        pass

    write = corpus_prepare._write_split

    def interrupt(folder, split, *args):
        if split == "valid":
            raise StopError
        return write(folder, split, *args)

    monkeypatch.setattr(corpus_prepare, "_write_split", interrupt)
    with pytest.raises(StopError):
        prepare(cfg, _silent)
    with pytest.raises(UserError, match="not prepared data"):
        load_prepared(cfg.out)
    monkeypatch.undo()
    prepare(cfg, _silent)
    assert load_prepared(cfg.out, verify=True).split("train").documents == 57


def test_failed_overwrite_keeps_the_old_data(cfg):
    prepare(cfg, _silent)
    impossible = dataclasses.replace(
        cfg, tokenizer="sentencepiece", vocab_size=60_000, overwrite=True
    )
    with pytest.raises(UserError, match="vocabulary of 60000"):
        prepare(impossible, _silent)
    load_prepared(cfg.out, verify=True)


def test_overwrite_leaves_foreign_files_alone(cfg, tmp_path):
    prepare(cfg, _silent)
    (tmp_path / "out" / "notes.tmp").write_text("mine")
    prepare(dataclasses.replace(cfg, overwrite=True), _silent)
    assert (tmp_path / "out" / "notes.tmp").read_text() == "mine"


def test_damage_is_named(cfg, tmp_path):
    prepare(cfg, _silent)
    tokens = tmp_path / "out" / "train-00000-of-00001.tokens"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(UserError, match=r"train-00000-of-00001.tokens has \d+ bytes; .*truncated"):
        load_prepared(cfg.out)
    tokens.write_bytes(content[:-2] + b"\1\0")
    load_prepared(cfg.out)
    with pytest.raises(UserError, match="SHA-256"):
        load_prepared(cfg.out, verify=True)
    tokens.unlink()
    with pytest.raises(UserError, match="tokens is missing"):
        load_prepared(cfg.out)


def test_another_tokenizer_is_refused(cfg, tmp_path):
    prepare(dataclasses.replace(cfg, tokenizer="characters"), _silent)
    spec = tmp_path / "out" / "tokenizer" / "spec.json"
    changed = json.loads(spec.read_text())
    changed["characters"] += "é"
    spec.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="has fingerprint"):
        load_prepared(cfg.out)


def test_bad_manifests_are_refused(cfg, tmp_path):
    prepare(cfg, _silent)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 7'))
    with pytest.raises(UserError, match="format version 7; expected 1"):
        load_prepared(cfg.out)
    path.write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        load_prepared(cfg.out)
    prepare(dataclasses.replace(cfg, overwrite=True), _silent)
    load_prepared(cfg.out, verify=True)


def _run(*flags):
    command = [sys.executable, "-m", "flm_jax.prepare_data", *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_command_line(cfg, tmp_path):
    flags = (f"--path={cfg.source.path}", "--split_documents=line", "--tokenizer=characters")
    done = _run("--source=text", f"--out={tmp_path / 'cli'}", *flags)
    assert done.returncode == 0, done.stderr
    assert "train 57 documents" in done.stdout.splitlines()[-1]
    load_prepared(tmp_path / "cli", verify=True)
    failed = _run("--source=text", f"--out={tmp_path / 'cli'}", *flags, "--valid_fraction=0.2")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: ")
    assert "Traceback" not in failed.stderr


def test_a_separator_is_among_the_arguments(cfg, tmp_path):
    (tmp_path / "corpus.txt").write_text("one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree")
    flags = ("--source=text", f"--path={tmp_path}/corpus.txt", "--tokenizer=bytes")
    whole = _run(*flags, f"--out={tmp_path}/whole")
    assert whole.returncode == 0 and whole.stderr.count("--separator='<|endoftext|>'") == 1
    cut = _run(*flags, f"--out={tmp_path}/cut", "--separator=<|endoftext|>")
    assert cut.returncode == 0 and not cut.stderr
    prepared = load_prepared(tmp_path / "cut")
    assert _documents(prepared, "train") == ["one", "three"]
    assert _documents(prepared, "valid") == ["two"]
    other = _run(*flags, f"--out={tmp_path}/whole", "--separator=<|endoftext|>")
    assert other.returncode == 2 and "separator ('', now '<|endoftext|>')" in other.stderr


def test_data_prepared_before_there_were_separators_are_known_again(cfg, tmp_path):
    prepare(cfg, _silent)
    path = tmp_path / "out" / "manifest.json"
    old = json.loads(path.read_text())
    for later in ("separator", "content"):
        old["args"].pop(later, None)
    path.write_text(json.dumps(old))
    said = []
    assert prepare(cfg, said.append) == old
    assert "already prepared" in said[0]


def test_the_sample_of_sentencepiece_is_among_the_arguments(cfg, tmp_path):
    trained = dataclasses.replace(cfg, tokenizer="sentencepiece", vocab_size=32)
    prepare(trained, _silent)
    less = dataclasses.replace(trained, sample_characters=500)
    with pytest.raises(UserError, match=r"sample_characters \(10000000, now 500\)"):
        prepare(less, _silent)
    other = prepare(dataclasses.replace(less, out=str(tmp_path / "less")), _silent)
    whole = load_prepared(cfg.out).tokenizer
    assert other["tokenizer"]["fingerprint"] != whole.fingerprint
    path = tmp_path / "out" / "manifest.json"
    old = json.loads(path.read_text())
    del old["args"]["sample_characters"]  # as written before there was a sample
    path.write_text(json.dumps(old))
    assert prepare(trained, _silent) == old


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_changed_file_of_the_same_size_is_noticed(tmp_path, kind):
    name = {"text": "a.txt", "jsonl": "a.jsonl"}[kind]
    (tmp_path / name).write_text('{"text": "old"}\n{"text": "two"}\n')
    cfg = PrepareConfig(SourceConfig(kind, str(tmp_path / name)), str(tmp_path / "out"), "bytes")
    manifest = prepare(cfg, _silent)
    (tmp_path / name).touch()
    assert prepare(cfg, _silent) == manifest
    (tmp_path / name).write_text('{"text": "new"}\n{"text": "two"}\n')
    with pytest.raises(UserError, match=r"other arguments: content \(.*--overwrite"):
        prepare(cfg, _silent)
    prepare(dataclasses.replace(cfg, overwrite=True), _silent)
    assert "new" in "".join(_documents(load_prepared(cfg.out), "train"))


def test_parts_of_files_that_changed_in_between_are_not_merged(cfg, tmp_path):
    prepare(dataclasses.replace(cfg, shard=Shard(0, 2)), _silent)
    path = tmp_path / "corpus.txt"
    path.write_text(path.read_text().replace("x\n", "y\n", 1))
    prepare(dataclasses.replace(cfg, shard=Shard(1, 2)), _silent)
    with pytest.raises(UserError, match="differ in content"):
        merge(cfg.out)


@pytest.mark.parametrize(
    "name, unknown", [("characters", 4), ("sentencepiece", 0), ("bytes", None)]
)
def test_the_share_of_unknown_pieces_is_said(tmp_path, name, unknown):
    letters = np.random.default_rng(0).choice(list("aefilnoprsw "), (40, 50))
    lines = ["".join(line) for line in letters]
    (tmp_path / "a.txt").write_text("\n".join([*lines, "cafe\u0301\n"]))
    source = SourceConfig("text", str(tmp_path / "a.txt"))
    said = []
    prepare(PrepareConfig(source, str(tmp_path / "out"), name, vocab_size=32), said.append)
    found = [line for line in said if "unknown" in line]
    assert len(found) == (unknown is not None)
    if found:
        stream = load_prepared(tmp_path / "out").split("valid")
        count = int((stream.read(0, len(stream)) == unknown).sum())
        assert found[0].startswith(
            f"valid: {count} of {len(stream)} tokens ({count / len(stream):.2%})"
        )
        assert count and "--tokenizer=bytes" in found[0]
        size = int(re.search(r"sentencepiece from --vocab_size=(\d+) on", found[0])[1])
        cfg = PrepareConfig(source, str(tmp_path / "more"), "sentencepiece", vocab_size=size)
        more = []
        prepare(cfg, more.append)
        assert more and not any("unknown" in line for line in more)
