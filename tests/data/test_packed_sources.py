"""Documents of parquet files and of files that Zstandard packed; the packages that they need."""

import gzip
import json
import sys

import pytest

from flm_jax.core.errors import UserError
from flm_jax.core.extras import import_extra
from flm_jax.core.progress import Progress
from flm_jax.data.corpus.prepare import PrepareConfig, prepare
from flm_jax.data.corpus.sources import SourceConfig, open_corpus
from flm_jax.data.corpus.store import load_prepared


def _texts(path, source="text", **keys):
    corpus = open_corpus(SourceConfig(source, str(path), **keys))
    return [text for _, text in sorted(pair for read in corpus.splits.values() for pair in read())]


def _pack(content):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(content)


@pytest.fixture
def write(tmp_path):
    """Writes columns to a parquet file of several groups of rows; its path."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    def table(name="a.parquet", **columns):
        parquet.write_table(arrow.table(columns), tmp_path / name, row_group_size=7)
        return tmp_path / name

    return table


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_zst_is_read_as_the_text_in_it(tmp_path, end):
    text = b"\xef\xbb\xbfone\ntwo\n\nthree".replace(b"\n", end)
    (tmp_path / "a.txt.zst").write_bytes(_pack(text))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"four"))
    assert _texts(tmp_path) == ["one\ntwo\n\nthree", "four"]
    assert _texts(tmp_path, split_documents="line") == ["one", "two", "three", "four"]


def test_zst_of_several_frames_and_of_long_lines(tmp_path):
    records = [{"text": f"{i} " + "long " * 200_000 + str(i)} for i in range(3)]
    content = "\n".join(map(json.dumps, records)).encode()
    cut = len(content) // 2
    (tmp_path / "a.jsonl.zst").write_bytes(_pack(content[:cut]) + _pack(b"") + _pack(content[cut:]))
    assert _texts(tmp_path, "jsonl") == [record["text"] for record in records]


def test_damaged_zst_is_named(tmp_path):
    packed = _pack(b"words and " * 1000 + b"\nmore of them" * 20)
    path = tmp_path / "a.txt.zst"
    path.write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"a\.txt\.zst cannot be read: it ends before .*\.zst"):
        _texts(path)
    path.write_bytes(b"plain words")
    with pytest.raises(UserError, match=r"a\.txt\.zst cannot be read: .*expected UTF-8 text"):
        _texts(path)


def test_parquet_gives_the_named_column_of_all_files(write, tmp_path):
    expected = [f"document {i}" for i in range(20)]
    write(body=[f"\ufeff{text}\r\n" for text in expected], other=list(range(20)))
    (tmp_path / "sub").mkdir()
    write("sub/b.parquet", body=["last"])
    found = _texts(tmp_path, "parquet", text_key="body")
    assert found == [f"{text}\n" for text in expected] + ["last"]
    separated = write("c.parquet", text=["one\n<|endoftext|>\ntwo", "three"])
    assert _texts(separated, "parquet", separator="<|endoftext|>") == ["one", "two", "three"]


def test_parquet_with_repeated_or_long_strings(write):
    arrow = pytest.importorskip("pyarrow")
    repeated = arrow.array(["a", "b", "a"]).dictionary_encode()
    assert _texts(write(text=repeated), "parquet") == ["a", "b", "a"]
    long = arrow.array(["a", "b"], arrow.large_string())
    assert _texts(write(text=long), "parquet") == ["a", "b"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"txt": ["a"]}, "unknown text_key of .*a.parquet 'text'; did you mean 'txt'"),
        ({"text": [1, 2]}, "column 'text' holds int64; expected string"),
        ({"text": ["a", None]}, "a.parquet row 2: 'text' holds null"),
    ],
)
def test_unfit_columns_are_named(write, columns, message):
    with pytest.raises(UserError, match=message):
        _texts(write(**columns), "parquet")


def test_damaged_parquet_is_named(write):
    path = write(text=[f"a document of some words {i}" for i in range(200)])
    content = path.read_bytes()
    for damaged in (b"no parquet", content[:-4], content[:20] + b"\xff" * 400 + content[420:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="a.parquet cannot be read .*whole parquet file"):
            _texts(path, "parquet")


@pytest.mark.parametrize("source", ["text", "jsonl", "parquet", "hf"])
def test_a_pass_shows_how_far_it_has_come(write, tmp_path, monkeypatch, source):
    texts = [f"text {i} " + "of some length " * 400 for i in range(60)]
    if source == "text":
        (tmp_path / "a.txt").write_text("\n".join(texts[:30]))
        (tmp_path / "b.txt.gz").write_bytes(gzip.compress("\n".join(texts[30:]).encode()))
    elif source == "jsonl":
        (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": x}) for x in texts))
    else:
        write("train-0.parquet", text=texts[:20])
        write("train-1.parquet", text=texts[20:])
    monkeypatch.setattr("flm_jax.data.corpus.files._MEGABYTE", 1)
    shown = []
    monkeypatch.setattr(Progress, "done", lambda bar, count: shown.append((count, bar._total)))
    corpus = open_corpus(SourceConfig(source, str(tmp_path), split_documents="line"))
    for split in ("train", "valid", "train"):
        shown.clear()
        assert list(corpus.texts(split, "reading")) == list(corpus.splits[split]())
        places, (total,) = [x for x, _ in shown], {x for _, x in shown}
        assert total == sum(x.stat().st_size for x in tmp_path.iterdir())
        assert places == sorted(places) and places[-1] <= total
        assert split == "valid" or places[0] < total / 2 < 0.9 * total < places[-1]


def test_parquet_is_prepared(write, tmp_path):
    source = SourceConfig("parquet", str(write(text=[f"text {i}" for i in range(50)])))
    prepare(PrepareConfig(source, str(tmp_path / "out"), "bytes"), lambda _: None)
    prepared = load_prepared(tmp_path / "out", verify=True)
    stream = prepared.split("train")
    assert prepared.tokenizer.decode(stream.document(0)) == "text 0"


@pytest.mark.parametrize(
    ("package", "name", "source"),
    [("zstandard", "a.txt.zst", "text"), ("pyarrow", "a.parquet", "parquet")],
)
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package, name, source):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.parquet", None)
    (tmp_path / name).write_bytes(b"some")
    with pytest.raises(UserError, match=rf"needs the package `{package}`.*flm-jax\[data\]"):
        _texts(tmp_path, source)
    with pytest.raises(UserError, match=rf"{package}`, which is not installed: .*flm-jax\[more\]"):
        import_extra(package, "more", "this")
