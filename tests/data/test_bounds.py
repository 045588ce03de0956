"""Files that are made to fill the memory, or that are broken: one clear error each."""

import gzip
import itertools
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from etils import epath

from flm_jax.core import reading
from flm_jax.core.errors import UserError
from flm_jax.data import text as texts
from flm_jax.data.corpus import files, text8, zstandard_lines
from flm_jax.data.corpus import parquet as parquet_texts
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig, open_corpus
from flm_jax.data.corpus.store import load_prepared
from flm_jax.data.jsonl import read_records
from flm_jax.data.self_generated import begin, open_generated, write_part
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from flm_jax.inference.prompts import Prompt, lay_out
from helpers.prompts import byte_model

MOST = 100_000


@pytest.fixture
def small(monkeypatch):
    """Bounds that small files reach."""
    for module in (files, zstandard_lines):
        monkeypatch.setattr(module, "LONGEST_LINE", MOST)
    monkeypatch.setattr(texts, "LONGEST_TEXT", 3 * MOST)


def packed(path, content):
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = pytest.importorskip("zstandard").ZstdCompressor().compress(content)
    path.write_bytes(content)
    return str(path)


def documents(source, path, unit="file"):
    corpus = open_corpus(SourceConfig(source, path, unit))
    return [text for read in corpus.splits.values() for _, text in read()]


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_lines_and_documents_have_an_end(tmp_path, small, ending):
    line = packed(tmp_path / f"line.txt{ending}", b"a" * (2 << 20))
    for unit in ("file", "line", "paragraph"):
        with pytest.raises(UserError, match=f"line.txt.*a line has more than {MOST} bytes"):
            documents("text", line, unit)
    long = packed(tmp_path / f"long.txt{ending}", b"some words\n" * 40_000)
    assert len(documents("text", long, "line")) == 40_000
    for unit, mend in (("file", "--split_documents"), ("paragraph", "blank lines")):
        with pytest.raises(UserError, match=f"more than {3 * MOST} characters.*{mend}"):
            documents("text", long, unit)
    record = json.dumps({"text": "a" * (2 << 20)}).encode()
    with pytest.raises(UserError, match="a line has more than"):
        documents("jsonl", packed(tmp_path / f"a.jsonl{ending}", record))
    array = packed(tmp_path / f"a.json{ending}", b"[\n" + b'{"a": 1},\n' * 40_000 + b'{"a": 1}]')
    with pytest.raises(UserError, match=f"a.json.* more than {3 * MOST} characters.*object a line"):
        read_records(array, "problems")
    tracemalloc.start()
    with pytest.raises(UserError, match="more than"):
        read_records(array, "problems")
    assert tracemalloc.get_traced_memory()[1] < 10 * 3 * MOST, "pieces are joined as they come"
    tracemalloc.stop()
    lines = packed(tmp_path / f"b.json{ending}", b'{"a": 1}\n' * 40_000)
    assert len(read_records(lines, "problems")) == 40_000


def test_a_frame_of_zstandard_is_unpacked_in_parts(tmp_path, monkeypatch):
    """64 MiB of one letter are some kB packed: at no time is all of it there."""
    pytest.importorskip("zstandard")
    path = packed(tmp_path / "a.txt.zst", b"a" * (64 << 20))
    monkeypatch.setattr(zstandard_lines, "_PACKED_AT_ONCE", 64)
    monkeypatch.setattr(zstandard_lines, "LONGEST_LINE", 8 << 20)
    longest = 0
    with open(path, "rb") as stream, pytest.raises(zstandard_lines.DamagedError):
        for chunk in zstandard_lines.unpacked_lines(stream, path):
            longest = max(longest, len(chunk))
    assert longest == 0


@pytest.mark.parametrize("target", ["pipe", "/proc/kmsg", "/dev/zero"])
def test_files_of_a_corpus_that_never_end_are_not_read(tmp_path, target):
    (tmp_path / "a.txt").write_text("some words")
    if target == "pipe":
        os.mkfifo(tmp_path / "b.txt")
    else:
        (tmp_path / "b.txt").symlink_to(target)
    with pytest.raises(UserError, match="b.txt is no plain file"):
        documents("text", str(tmp_path))


def test_few_bytes_of_zstandard_stand_for_many_lines(tmp_path):
    pytest.importorskip("zstandard")
    path = epath.Path(packed(tmp_path / "a.txt.zst", b"\n" * (16 << 20)))
    tracemalloc.start()
    assert sum(1 for _ in itertools.islice(files.lines(path), 100)) == 100
    assert tracemalloc.get_traced_memory()[1] < 48 << 20, "no list of all lines is made"
    tracemalloc.stop()


def test_archives_of_text8_are_bounded_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(text8, "LONGEST_TEXT", 3 * MOST)
    path = tmp_path / "text8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text8", "a" * (4 * MOST))
    with pytest.raises(UserError, match=f"text8.zip holds more than {3 * MOST} bytes"):
        documents("text8", str(path))
    whole = path.read_bytes()
    entry = whole.index(b"PK\1\2")
    for name, changes in {
        "unknown method": {8: 99, entry + 10: 99},
        "encrypted": {6: 1, entry + 8: 1},
        "broken": dict.fromkeys(range(36, 60), 255),
    }.items():
        damaged = bytearray(whole)
        for place, value in changes.items():
            damaged[place] = value
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="text8.zip is damaged"):
            documents("text8", str(path))
            raise AssertionError(name)


def test_texts_of_parquet_files_are_read_one_by_one(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "a.parquet")
    write = lambda column: parquet.write_table(arrow.table({"text": column}), path)
    ends = arrow.py_buffer(np.array([0, 2, 3], np.int32).tobytes())
    write(arrow.StringArray.from_buffers(2, ends, arrow.py_buffer(b"\xff\xfea")))
    with pytest.raises(UserError, match="a.parquet row 1 is no text .*expected UTF-8"):
        documents("parquet", path)
    with pytest.raises(UserError, match="a.parquet cannot be read .*utf-8"):
        list(parquet_texts.records(path))
    # A kilobyte of a file that stands for one long text, many times.
    places = arrow.array([0] * 500 + [1], arrow.int32())
    write(arrow.DictionaryArray.from_arrays(places, arrow.array(["a" * (1 << 20), "b"])))
    tracemalloc.start()
    texts_read = parquet_texts.texts(epath.Path(path), "text")
    assert [len(text) for _, text in texts_read] == [1 << 20] * 500 + [1]
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    monkeypatch.setattr(parquet_texts, "LONGEST_TEXT", MOST)
    with pytest.raises(UserError, match=f"row 1 is a text of more than {MOST} bytes"):
        documents("parquet", path)


def test_broken_streams_and_json_are_named(tmp_path):
    whole = gzip.compress(b'{"text": "some words"}\n' * 5000)
    damaged = bytearray(whole)
    damaged[20:60] = bytes(255 - one for one in damaged[20:60])
    for name, content in (("cut", whole[:-20]), ("broken", bytes(damaged)), ("none", b"\x1f\x8b")):
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(content)
        for read in (lambda p: documents("jsonl", p), lambda p: read_records(p, "problems")):
            with pytest.raises(UserError, match=f"{name}.jsonl.gz cannot be read"):
                read(str(path))
    for content in ("[" * 100_000, f'{{"text": {"9" * 10_000}}}', '{"a":' * 100_000):
        path = tmp_path / "a.jsonl"
        path.write_text(f'{{"text": "a"}}\n{content}\n')
        with pytest.raises(UserError, match="a.jsonl line 2 is not JSON"):
            documents("jsonl", str(path))
        with pytest.raises(UserError, match="a.jsonl, line 2: no JSON"):
            read_records(str(path), "problems")


def test_manifests_name_files_of_their_folder(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    source = SourceConfig("text", str(tmp_path / "a.txt"), "line")
    prepare(PrepareConfig(source, str(tmp_path / "data"), "bytes"))
    path = tmp_path / "data/manifest.json"
    whole = json.loads(path.read_text())
    shard = whole["splits"]["train"]["shards"][0]["files"]
    for name in ("../a.txt", "/dev/zero", 5, None):
        shard["tokens"]["file"] = name
        path.write_text(json.dumps(whole))
        with pytest.raises(UserError, match="names|is damaged"):
            load_prepared(tmp_path / "data")
    for broken in ({}, {"tokenizer": 5}, {"splits": {"train": []}}, {"splits": 5}):
        path.write_text(json.dumps({"format_version": 1} | broken))
        with pytest.raises(UserError, match="manifest.json is damaged"):
            load_prepared(tmp_path / "data")


def test_texts_of_models_are_checked(tmp_path, monkeypatch):
    tokens = np.zeros((3, 4), np.int32)
    rows = {"tokens": tokens, "prompt": tokens > 0, "mask": tokens > 0}
    folder = epath.Path(tmp_path / "own")
    begin(folder, {}, 3, 1, ByteTokenizer())
    write_part(folder, 0, rows)
    assert len(open_generated(str(folder), 4)[0]) == 2
    monkeypatch.setattr(reading, "MOST_UNPACKED", 40)
    with pytest.raises(UserError, match="part-00000.npz holds .* bytes unpacked"):
        open_generated(str(folder), 4)
    monkeypatch.setattr(reading, "MOST_UNPACKED", 1 << 20)
    np.savez(folder / "part-00000.npz", **(rows | {"mask": tokens[:, :2]}))
    with pytest.raises(UserError, match="several shapes"):
        open_generated(str(folder), 4)
    for content in (b"", b"PK\x05\x06" + bytes(18), b"PK"):
        (folder / "part-00000.npz").write_bytes(content)
        with pytest.raises(UserError, match="part-00000.npz is damaged.*delete it"):
            open_generated(str(folder), 4)
    for parts in (10**12, -1, "a", None):
        (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "parts": parts}))
        with pytest.raises(UserError, match="tells no number of parts"):
            open_generated(str(folder), 4)


@pytest.mark.parametrize("gap", ["1000000000", "9" * 10_000, "0" * 5000 + "65", "65"])
def test_gaps_larger_than_a_row_are_refused(gap):
    model = byte_model()
    with pytest.raises(UserError, match="the infill has a gap of .* tokens; expected at most 64"):
        lay_out(model, [Prompt("", f"a{{{gap}}}b")], 64)
    assert lay_out(model, [Prompt("", "a{0012}b")], 64)
